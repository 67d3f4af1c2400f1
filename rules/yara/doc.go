// Package yara holds the YARA rules that ship with Vantage, as files. They are
// written for guest memory; each rule's meta has author, description, severity
// (info, low, medium, high, critical) and reference.
//
// Besides YARA's own language they use the variables that package scanner sets
// (kind, where, perms, …). The yara command reads them with
// -d kind=physical -d where= -d perms=.
//
// This package must not import any other package of Vantage.
package yara

import (
	"embed"
	"io/fs"
)

//go:embed *.yar
var files embed.FS

// Name is what the rules' folder is called in namespaces: "vantage/demo.yar".
const Name = "vantage"

// Files returns the rule files.
func Files() fs.FS { return files }
