package scanner

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/hillu/go-yara/v4"
)

// Error codes of libyara (yara/error.h) that are told apart here; go-yara has
// no names for them.
const (
	errUnsupportedFileVersion yara.Error = 7  // ERROR_UNSUPPORTED_FILE_VERSION
	errScanTimeout            yara.Error = 26 // ERROR_SCAN_TIMEOUT
	errInvalidArgument        yara.Error = 29 // ERROR_INVALID_ARGUMENT
)

// builtinExternal is an external variable that is set for each extent.
type builtinExternal struct {
	name string
	zero any
}

// Names of built-in external variables.
const (
	externPID   = "pid"
	externComm  = "comm"
	externWhere = "where"
	externPerms = "perms"
	externKind  = "kind"
	externVM    = "vm"
)

func builtinExternals() []builtinExternal {
	return []builtinExternal{
		{externPID, 0}, {externComm, ""}, {externWhere, ""}, {externPerms, ""}, {externKind, ""}, {externVM, ""},
	}
}

type compiled struct {
	set      *ruleSet
	warnings []CompileMessage
}

// compile compiles files, and adds all that it read to id.
//
// The built-in variables are defined only if the rules use them: what they hold
// is part of what makes two extents alike, and rules that ask for the pid have
// shared pages scanned once for each process. And a rule may be called "pid".
func compile(files []ruleFile, externals map[string]any, id identityHash) (compiled, error) {
	for _, k := range sortedKeys(externals) {
		id.add("external "+k, fmt.Appendf(nil, "%T %v", externals[k], externals[k]))
	}
	for _, f := range files {
		id.add("file "+f.namespace, f.text)
	}
	var builtin []builtinExternal
	for {
		run := &compileRun{externals: externals, builtin: builtin}
		yr, err := run.all(files)
		if err != nil {
			return compiled{}, err
		}
		if len(run.errors) == 0 {
			for _, inc := range run.included {
				id.add("include "+inc.name, inc.text)
			}
			var names []string
			for _, b := range builtin {
				names = append(names, b.name)
			}
			return compiled{newRuleSet(yr, names), run.warnings}, nil
		}
		more := run.missing()
		if len(more) == 0 {
			return compiled{}, &CompileErrors{Errors: run.errors, Warnings: run.warnings}
		}
		builtin = append(builtin, more...)
	}
}

// compileRun is one attempt at all files.
type compileRun struct {
	externals map[string]any
	builtin   []builtinExternal

	errors   []CompileMessage
	warnings []CompileMessage
	included []includedFile
	total    int // bytes included
}

type includedFile struct {
	name string
	text []byte
}

// all compiles files into one set. After the first that fails, the others are
// compiled each for itself, so that all errors are known.
func (run *compileRun) all(files []ruleFile) (*yara.Rules, error) {
	set, err := run.compiler()
	if err != nil {
		return nil, err
	}
	defer set.Destroy()
	failed := false
	for _, f := range files {
		c := set
		if failed {
			if c, err = run.compiler(); err != nil {
				return nil, err
			}
		}
		if !run.file(c, f) {
			failed = true
		}
		if c != set {
			c.Destroy()
		}
	}
	if failed {
		return nil, nil
	}
	yr, err := set.GetRules()
	if err != nil {
		return nil, fmt.Errorf("compile rules: %w", err)
	}
	return yr, nil
}

func (run *compileRun) compiler() (*yara.Compiler, error) {
	c, err := yara.NewCompiler()
	if err != nil {
		return nil, fmt.Errorf("compile rules: %w", err)
	}
	define := func(name string, v any) {
		if err == nil {
			if err = c.DefineVariable(name, v); err != nil {
				err = fmt.Errorf("compile rules: external variable %s: %w", name, err)
			}
		}
	}
	for _, b := range run.builtin {
		if _, own := run.externals[b.name]; !own {
			define(b.name, b.zero)
		}
	}
	for _, name := range sortedKeys(run.externals) {
		define(name, run.externals[name])
	}
	if err != nil {
		c.Destroy()
		return nil, err
	}
	return c, nil
}

// file compiles one file and reports whether that worked.
func (run *compileRun) file(c *yara.Compiler, f ruleFile) bool {
	if i := bytes.IndexByte(f.text, 0); i >= 0 {
		run.errors = append(run.errors, CompileMessage{
			File: f.namespace, Line: 1 + bytes.Count(f.text[:i], []byte("\n")), Text: "NUL byte: this is no text file",
		})
		return false
	}
	inc := &includes{run: run, file: f, resolved: map[string]string{"": f.name}}
	c.SetIncludeCallback(inc.open)
	nErr, nWarn := len(c.Errors), len(c.Warnings)
	err := c.AddString(string(f.text), f.namespace)
	if err == nil {
		for _, m := range c.Warnings[nWarn:] {
			run.warnings = append(run.warnings, inc.message(m))
		}
	}
	told := false
	for _, m := range c.Errors[nErr:] {
		msg := inc.message(m)
		// A file may be included by several.
		if told = true; !slices.Contains(run.errors, msg) {
			run.errors = append(run.errors, msg)
		}
		if m.Filename != "" {
			// After an error libyara skips tokens, the end of an included file
			// too, and then takes the rest of the including file for that file.
			break
		}
	}
	if err != nil && !told {
		run.errors = append(run.errors, CompileMessage{File: f.namespace, Text: err.Error()})
	}
	return err == nil
}

// missing returns the built-in variables that rules use and that were not
// defined in this attempt.
func (run *compileRun) missing() []builtinExternal {
	var out []builtinExternal
	for _, b := range builtinExternals() {
		if slices.ContainsFunc(run.builtin, func(x builtinExternal) bool { return x.name == b.name }) {
			continue
		}
		if slices.ContainsFunc(run.errors, func(m CompileMessage) bool {
			return strings.Contains(m.Text, fmt.Sprintf("undefined identifier %q", b.name))
		}) {
			out = append(out, b)
		}
	}
	return out
}

// includes answers the include statements of one file.
type includes struct {
	run  *compileRun
	file ruleFile
	// resolved has the path in the root of each name that libyara knows a file
	// by: what the include statement says, "" for the file itself. The same
	// name cannot be open twice (libyara calls that circular), so the last one
	// is the one that is meant.
	resolved map[string]string
	failures map[string]string // why a name could not be included
}

// open returns the text of what the file from includes, nil when it cannot be.
func (inc *includes) open(name, from, _ string) []byte {
	text, p, err := inc.read(name, from)
	if err != nil {
		if inc.failures == nil {
			inc.failures = map[string]string{}
		}
		inc.failures[name] = err.Error()
		return nil
	}
	inc.resolved[name] = p
	inc.run.included = append(inc.run.included, includedFile{inc.shown(p), text})
	return text
}

func (inc *includes) read(name, from string) (text []byte, p string, err error) {
	at, ok := inc.resolved[from]
	if !ok {
		return nil, "", fmt.Errorf("included from %q, which is not known", from)
	}
	if p, err = resolveInclude(at, name); err != nil {
		return nil, "", err
	}
	if text, err = readRuleFile(inc.file.root, p); err != nil {
		return nil, "", err
	}
	if inc.run.total += len(text); inc.run.total > maxRuleTotal || len(inc.run.included) >= maxRuleFiles {
		return nil, "", fmt.Errorf("the files included are more than %d bytes or %d files in all", maxRuleTotal, maxRuleFiles)
	}
	if bytes.IndexByte(text, 0) >= 0 {
		return nil, "", fmt.Errorf("NUL byte: this is no text file")
	}
	return append(make([]byte, 0, len(text)+1), text...), p, nil
}

// shown is the path of a file of the root as the user sees it.
func (inc *includes) shown(p string) string {
	prefix := strings.TrimSuffix(inc.file.namespace, inc.file.name)
	return path.Join(prefix, p)
}

func (inc *includes) message(m yara.CompilerMessage) CompileMessage {
	out := CompileMessage{File: inc.file.namespace, Line: m.Line, Text: m.Text}
	if p, ok := inc.resolved[m.Filename]; ok && m.Filename != "" {
		out.File = inc.shown(p)
	}
	for name, why := range inc.failures {
		if strings.Contains(m.Text, "include") && strings.Contains(m.Text, name) {
			out.Text += " (" + why + ")"
		}
	}
	return out
}
