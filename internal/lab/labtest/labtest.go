// Package labtest gives the guests of package lab to tests: it skips a test, by
// name and with the reason, when this machine lacks what a guest needs (on CI,
// with CI=true, that is a failure), closes guests at the end of the test or of
// the test binary, and prints the tail of a guest's console when a test fails.
//
// A package whose tests share guests (Shared) calls Main from its TestMain:
//
//	func TestMain(m *testing.M) { labtest.Main(m) }
//
// This package is for tests only and must not be imported by anything else.
package labtest

import (
	"errors"
	"os"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
)

// OnCI reports whether nothing may be skipped: $CI is set, and not to false.
func OnCI() bool {
	v := os.Getenv("CI")
	return v != "" && v != "false" && v != "0"
}

// Missing skips the test for a reason that lies in this machine, or fails it on
// CI. It does not return.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if OnCI() {
		t.Fatalf("may not be skipped on CI: "+format, args...)
	}
	t.Skipf(format, args...)
}

// check ends the test when err is not nil: see Missing.
func check(t testing.TB, err error) {
	t.Helper()
	switch {
	case err == nil:
	case errors.Is(err, lab.ErrMissing), errors.Is(err, lab.ErrUnreachable):
		Missing(t, "%v", err)
	default:
		t.Fatal(err)
	}
}

// NeedRoot skips the test unless it runs as root.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "needs root")
	}
}

// NeedKVM skips the test where there is no KVM, on CI too: what needs one runs in
// the beds (NestedGroup), where it must be there.
func NeedKVM(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	switch {
	case err == nil:
		_ = f.Close()
	case InsideNested():
		t.Fatal(err)
	default:
		t.Skipf("this machine has no KVM of its own: %v", err)
	}
}

// Kernel returns the cloud kernel of a suite.
func Kernel(t testing.TB, suite lab.Suite) *lab.Kernel {
	t.Helper()
	return KernelOf(t, suite, lab.Cloud)
}

// KernelOf returns the kernel of a suite and flavour.
func KernelOf(t testing.TB, suite lab.Suite, flavour lab.Flavour) *lab.Kernel {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a guest: not with -short")
	}
	k, err := lab.FetchKernel(t.Context(), suite, flavour)
	check(t, err)
	return k
}

// Boot boots a guest that is closed at the end of the test.
func Boot(t testing.TB, cfg lab.Config) *lab.Guest {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a guest: not with -short")
	}
	g, err := lab.Boot(t.Context(), cfg)
	check(t, err)
	t.Cleanup(func() {
		showConsole(t, g)
		if err := g.Close(); err != nil {
			t.Errorf("close guest: %v", err)
		}
	})
	return g
}

func showConsole(t testing.TB, g *lab.Guest) {
	if t.Failed() {
		t.Logf("console of guest %s:\n%s", g.Name(), g.ConsoleTail(60))
	}
}
