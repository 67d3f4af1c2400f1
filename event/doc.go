// Package event is the one schema of what happened in a VM: what a scan found,
// what introspection saw hidden, what policy answered and what came of it.
//
// An Event is written in two forms. The plain form (Marshal, Encoder) is one
// JSON object a line with stable keys; schema.json, which Schema returns,
// describes it. The OCSF form (MarshalOCSF) is the same event as a class of the
// Open Cybersecurity Schema Framework 1.5.0.
//
// SchemaVersion is MAJOR.MINOR. A new kind or a new optional field raises
// MINOR, and older readers ignore it; anything else raises MAJOR, and older
// readers refuse it with ErrVersion.
//
// Strings of an event may come from a hostile guest. Both forms are valid JSON
// whatever they hold, and print no control character: see Marshal.
//
// This package must not import any other package of Vantage: everybody may
// speak of events, and the schema depends on nobody.
package event
