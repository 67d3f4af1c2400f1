// Package policy decides on events with OPA, and carries out what was decided.
//
// An Engine loads a folder or a bundle of Rego, compiles it once, and evaluates
// data.vantage.decision for each event:
//
//	{"verdict": "malicious", "responses": [
//	    {"response": "pause", "severity": "high", "reason": "rule X", "params": {}}]}
//
// input is the event's plain JSON form plus input.now, the event's time in
// nanoseconds since the epoch. A decision depends on the policy, its data and
// the event only: builtins that ask the clock, a random source, the network or
// the host are disabled (DisabledBuiltins), so a log of events can be replayed
// against another policy (Replay).
//
// Decide never takes longer than its deadline, whatever the policy does, and
// always returns a decision: when there is an error the fail mode's. A policy
// that does not load leaves the last good one in force.
//
// An Executor carries out responses through Responders; the VMs that they act
// on are injected.
//
// This package must not import hypervisor, introspect, scanner or node: it
// knows events, and not who makes them.
package policy
