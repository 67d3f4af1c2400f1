// Package hypervisortest is for tests of drivers and of what stands on them:
// Fake, a VM in memory that records its calls and fails those it is told to,
// and Conformance, the suite that every driver passes, the fake too.
//
// This package must not import any package of Vantage but hypervisor.
package hypervisortest
