package policy

import (
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
)

// DisabledBuiltins returns the builtins of OPA that policies may not call, and
// why each: what it does. A call to one is a compile error.
func DisabledBuiltins() map[string]string {
	const (
		clock  = "depends on the clock; use input.now, the event's time in nanoseconds"
		random = "depends on chance; a decision must be the same when it is replayed"
		net    = "reaches the network"
		host   = "tells of the host's environment"
		parse  = "runs the parser on text that may come from a guest"
	)
	return map[string]string{
		"http.send":              net,
		"net.lookup_ip_addr":     net,
		"opa.runtime":            host,
		"rego.parse_module":      parse,
		"time.now_ns":            clock,
		"rand.intn":              random,
		"uuid.rfc4122":           random,
		"io.jwt.encode_sign":     random,
		"io.jwt.encode_sign_raw": random,
	}
}

// Capabilities returns what policies may use: all of this OPA version except
// for DisabledBuiltins, and any other builtin that OPA declares
// nondeterministic. JSON Schemas are never fetched from the network.
func Capabilities() *ast.Capabilities {
	caps := *ast.CapabilitiesForThisVersion()
	disabled := DisabledBuiltins()
	caps.Builtins = slices.DeleteFunc(slices.Clone(caps.Builtins), func(b *ast.Builtin) bool {
		_, off := disabled[b.Name]
		return off || b.Nondeterministic
	})
	caps.AllowNet = []string{} // empty, not nil: nil allows any host
	return &caps
}
