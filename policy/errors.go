package policy

import "errors"

var (
	// ErrClosed is returned by what is used after its Close.
	ErrClosed = errors.New("policy is closed")
	// ErrDeadline is returned when an evaluation took longer than the
	// deadline, or could not begin within it.
	ErrDeadline = errors.New("policy took longer than its deadline")
	// ErrUndefined is returned when the policy says nothing of an event: it
	// must have a decision for each (a default one).
	ErrUndefined = errors.New("data.vantage.decision is undefined")
	// ErrResult is returned when what the policy says is not a decision: a
	// missing or unknown field, an unknown response, a wrong type.
	ErrResult = errors.New("policy returned no valid decision")
	// ErrNoDecision is returned when a policy has no rule
	// data.vantage.decision.
	ErrNoDecision = errors.New("no rule data.vantage.decision")
	// ErrLoad is returned when a policy could not be read, parsed or compiled.
	ErrLoad = errors.New("load policy")
	// ErrTooLarge is returned when a policy's files, or an event, are larger
	// than is accepted.
	ErrTooLarge = errors.New("too large")
	// ErrUnknownResponse is returned when there is no responder of a name.
	ErrUnknownResponse = errors.New("unknown response")
	// ErrDuplicate is returned by a Responder when there is nothing left to do:
	// the VM is paused already.
	ErrDuplicate = errors.New("already done")
	// ErrTimeout is returned when a response took longer than its timeout. It
	// may still take effect.
	ErrTimeout = errors.New("response took longer than its timeout")
)
