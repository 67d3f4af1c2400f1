// Package defaultpolicy holds the policy that ships with Vantage, so that the
// binary works without a file: what a scan finds with high or critical severity
// is reported and its VM paused, the rest is reported. The folder is a policy as
// any other: `vantage policy test rules/policy` tests it.
//
// It must not import any other package of Vantage: it holds files.
package defaultpolicy

import (
	"embed"
	"io/fs"
)

//go:embed data.yaml *.rego rules/*.rego
var files embed.FS

// FS returns the default policy's files, tests included.
func FS() fs.FS { return files }
