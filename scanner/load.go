package scanner

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hillu/go-yara/v4"
)

// Limits of what is read as rules, in bytes and files.
const (
	maxRuleFile     = 32 << 20
	maxRuleTotal    = 256 << 20 // includes count each time they are included
	maxCompiledFile = 1 << 30
	maxRuleFiles    = 50_000
)

// compiledMagic starts a file written by yarac (libyara, arena.c).
const compiledMagic = "YARA"

// RuleSource is where rules come from: see FromPath and FromFS.
type RuleSource struct {
	path string
	fsys fs.FS
}

// FromPath is a file of rules, a folder of them (all *.yar and *.yara below it),
// or a file that yarac compiled, told by its first bytes. Includes are resolved
// relative to the file that has them and must lie below the folder given, or
// the folder of the file given.
//
// libyara trusts compiled files: one that was tampered with can run code in
// this process, and one that lost its last bytes can crash it. Load only those
// you made.
func FromPath(p string) RuleSource { return RuleSource{path: filepath.Clean(p)} }

// FromFS is all *.yar and *.yara files in fsys; name stands for the folder in
// namespaces and messages.
func FromFS(fsys fs.FS, name string) RuleSource { return RuleSource{path: name, fsys: fsys} }

// RuleOptions are options of LoadRules.
type RuleOptions struct {
	// Externals are external variables for the rules: bool, int, int64, float64
	// or string. Besides them, rules may use those that the scanner sets for
	// each extent: the integer pid (0 outside of processes) and the strings
	// comm, where (the area's name, as in a Finding), perms ("r-xp", "" where
	// not known), kind ("process", "kernel", "physical") and vm.
	Externals map[string]any
}

// ruleFile is one file of rules that is compiled on its own, in its namespace.
type ruleFile struct {
	namespace string // its path as the user sees it: unique
	root      fs.FS  // includes cannot leave it
	name      string // in root
	text      []byte
}

// LoadRules reads and compiles rules. Each file has a namespace of its own, its
// path, so that two files may have rules of the same name. When anything in any
// file does not compile, it returns a *CompileErrors with everything that was
// found wrong in all files, and no rules.
func LoadRules(opts RuleOptions, sources ...RuleSource) (*Rules, error) {
	ld := &loader{opts: opts}
	defer ld.close()
	for _, s := range sources {
		if err := ld.add(s); err != nil {
			return nil, err
		}
	}
	id := newIdentityHash()
	r := &Rules{}
	ok := false
	defer func() {
		if !ok {
			_ = r.Close()
		}
	}()
	if len(ld.files) > 0 {
		c, err := compile(ld.files, opts.Externals, id)
		if err != nil {
			return nil, err
		}
		r.sets, r.warnings = append(r.sets, c.set), c.warnings
	}
	for _, c := range ld.compiled {
		set, err := c.load(opts.Externals)
		if err != nil {
			return nil, err
		}
		r.sets = append(r.sets, set)
		id.add("compiled", c.data)
	}
	if r.Count() == 0 {
		return nil, ErrNoRules
	}
	r.identity = id.String()
	ok = true
	return r, nil
}

type loader struct {
	opts     RuleOptions
	files    []ruleFile
	compiled []compiledFile
	roots    []*os.Root
	seen     map[string]bool
	total    int64
}

func (l *loader) close() {
	for _, r := range l.roots {
		_ = r.Close()
	}
}

func (l *loader) add(s RuleSource) error {
	if l.seen == nil {
		l.seen = map[string]bool{}
	}
	if s.fsys != nil {
		return l.addFolder(s.fsys, s.path)
	}
	st, err := os.Stat(s.path)
	if err != nil {
		return fmt.Errorf("rules: %w", err)
	}
	dir := s.path
	if !st.IsDir() {
		dir = filepath.Dir(s.path)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("rules: %w", err)
	}
	l.roots = append(l.roots, root)
	if st.IsDir() {
		return l.addFolder(root.FS(), s.path)
	}
	return l.addFile(root.FS(), filepath.Base(s.path), s.path)
}

// addFolder adds the rule files of a folder in the order of their names.
func (l *loader) addFolder(root fs.FS, shown string) error {
	found := false
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ext := path.Ext(name); d.IsDir() || (ext != ".yar" && ext != ".yara") {
			return nil
		}
		// A link is followed as far as the root goes, a device never.
		if st, err := fs.Stat(root, name); err != nil {
			return err
		} else if !st.Mode().IsRegular() {
			return nil
		}
		found = true
		return l.addFile(root, name, path.Join(shown, name))
	})
	if err != nil {
		return fmt.Errorf("rules in %s: %w", shown, err)
	}
	if !found {
		return fmt.Errorf("rules in %s: no *.yar or *.yara file: %w", shown, ErrNoRules)
	}
	return nil
}

func (l *loader) addFile(root fs.FS, name, shown string) error {
	if l.seen[shown] {
		return nil
	}
	l.seen[shown] = true
	if len(l.seen) > maxRuleFiles {
		return fmt.Errorf("rules: more than %d files", maxRuleFiles)
	}
	data, err := readRuleFile(root, name)
	if err != nil {
		return fmt.Errorf("rules: %s: %w", shown, err)
	}
	if l.total += int64(len(data)); l.total > maxCompiledFile {
		return fmt.Errorf("rules: more than %d bytes in all", maxCompiledFile)
	}
	if bytes.HasPrefix(data, []byte(compiledMagic)) && !isText(data) {
		l.compiled = append(l.compiled, compiledFile{shown, data})
		return nil
	}
	l.files = append(l.files, ruleFile{namespace: shown, root: root, name: name, text: data})
	return nil
}

// isText tells a source file that happens to start like a compiled one ("YARA
// rules…" is no valid rule, but the error should be the compiler's).
func isText(b []byte) bool { return bytes.IndexByte(b[:min(len(b), 64)], 0) < 0 }

// readRuleFile reads a regular file of at most maxRuleFile bytes, or
// maxCompiledFile when it is a compiled one.
func readRuleFile(root fs.FS, name string) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	head := make([]byte, len(compiledMagic))
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	limit := int64(maxRuleFile)
	if string(head[:n]) == compiledMagic {
		limit = maxCompiledFile
	}
	rest, err := io.ReadAll(io.LimitReader(f, limit-int64(n)+1))
	if err != nil {
		return nil, err
	}
	if int64(n+len(rest)) > limit {
		return nil, fmt.Errorf("larger than %d bytes", limit)
	}
	return append(head[:n], rest...), nil
}

// compiledFile is a rule set that yarac wrote.
type compiledFile struct {
	shown string
	data  []byte
}

func (c compiledFile) load(externals map[string]any) (*ruleSet, error) {
	yr, err := yara.ReadRules(bytes.NewReader(c.data))
	if err != nil {
		var ye yara.Error
		if errors.As(err, &ye) && ye == errUnsupportedFileVersion {
			return nil, fmt.Errorf("rules: %s: compiled by another version of yarac: compile it again with the one of the installed libyara: %w", c.shown, err)
		}
		return nil, fmt.Errorf("rules: %s: compiled rules: %w", c.shown, err)
	}
	var builtin []string
	sc, err := yara.NewScanner(yr)
	if err != nil {
		yr.Destroy()
		return nil, fmt.Errorf("rules: %s: compiled rules: %w", c.shown, err)
	}
	defer sc.Destroy()
	for _, b := range builtinExternals() {
		// The only way to ask a compiled set which variables it has.
		if sc.DefineVariable(b.name, b.zero) == nil {
			builtin = append(builtin, b.name)
		}
	}
	for _, name := range sortedKeys(externals) {
		if err := yr.DefineVariable(name, externals[name]); err != nil && !errors.Is(err, errInvalidArgument) {
			yr.Destroy()
			return nil, fmt.Errorf("rules: %s: external variable %s: %w", c.shown, name, err)
		}
	}
	return newRuleSet(yr, builtin), nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// resolveInclude returns the path in the root of what from includes as name.
func resolveInclude(from, name string) (string, error) {
	if strings.Contains(name, "\\") {
		name = strings.ReplaceAll(name, "\\", "/")
	}
	if path.IsAbs(name) {
		return "", errors.New("an absolute path is not allowed")
	}
	p := path.Join(path.Dir(from), name)
	if !fs.ValidPath(p) {
		return "", errors.New("it leads out of the folder of the rules")
	}
	return p, nil
}
