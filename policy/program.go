package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/util"

	"github.com/vantage-vmi/vantage/event"
)

// Entrypoint is the rule that is evaluated for each event.
const Entrypoint = "data.vantage.decision"

// maxWarnings is how many errors of builtins a decision keeps.
const maxWarnings = 16

// program is a policy, compiled. It does not change and is safe for concurrent
// use.
type program struct {
	query    rego.PreparedEvalQuery
	revision string
	digest   string
	modules  []string
	known    []string // responses that it may ask for
}

// Source says where a policy is. One of Path and FS is required.
type Source struct {
	Path string // a folder of Rego and data, or a bundle (tar.gz)
	FS   fs.FS  // a folder of the binary, instead of Path
	// Data is laid over the policy's own data: objects are merged, anything
	// else is replaced.
	Data map[string]any
}

func (s Source) check() error {
	if (s.Path == "") == (s.FS == nil) {
		return errors.New("policy: want either a path or a file system")
	}
	return nil
}

// read returns the policy's files, _test.rego among them only if asked for.
func (s Source) read(tests bool) ([]file, error) {
	if s.FS != nil {
		return readFS(s.FS, tests, defaultLimits())
	}
	return readFiles(s.Path, tests)
}

// name is what errors and reports call the policy.
func (s Source) name() string {
	if s.FS != nil {
		return "builtin"
	}
	return s.Path
}

// loaded is a policy, parsed.
type loaded struct {
	modules  map[string]*ast.Module
	data     map[string]any
	revision string
	digest   string
}

// parse reads files with OPA's reader of bundles.
func (s Source) parse(files []file) (*loaded, error) {
	b, err := bundle.NewCustomReader(&fileLoader{files: files}).
		WithBaseDir(s.name()). // errors name the files as the user does
		WithSizeLimitBytes(maxFileSize + 1).
		WithCapabilities(Capabilities()).
		WithProcessAnnotations(true).
		WithRegoVersion(ast.RegoV1).
		Read()
	if err != nil {
		return nil, err
	}
	l := &loaded{modules: map[string]*ast.Module{}, data: b.Data, revision: b.Manifest.Revision, digest: digest(files)}
	for _, m := range b.Modules {
		l.modules[m.Path] = m.Parsed
	}
	if s.Data != nil {
		over, err := json.Marshal(s.Data)
		if err != nil {
			return nil, fmt.Errorf("data: %w", err)
		}
		l.digest = digest(append(slices.Clone(files), file{"over.json", over}))
		var v map[string]any
		if err := util.UnmarshalJSON(over, &v); err != nil {
			return nil, fmt.Errorf("data: %w", err)
		}
		l.data = overlay(l.data, v)
	}
	return l, nil
}

// overlay lays over on base: objects are merged, anything else is replaced.
func overlay(base, over map[string]any) map[string]any {
	out := maps.Clone(base)
	if out == nil {
		out = map[string]any{}
	}
	for k, v := range over {
		b, ok1 := out[k].(map[string]any)
		o, ok2 := v.(map[string]any)
		if ok1 && ok2 {
			v = overlay(b, o)
		}
		out[k] = v
	}
	return out
}

// compile checks a parsed policy and makes it ready for evaluation.
func (l *loaded) compile(ctx context.Context, known []string) (*program, error) {
	store := inmem.NewFromObjectWithOpts(l.data, inmem.OptRoundTripOnWrite(false), inmem.OptReturnASTValuesOnRead(true))
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return nil, err
	}
	compiler := newCompiler(storage.NonEmpty(ctx, store, txn), false)
	compiler.Compile(l.modules)
	store.Abort(ctx, txn)
	if compiler.Failed() {
		return nil, explain(compiler.Errors)
	}
	if len(compiler.GetRules(ast.MustParseRef(Entrypoint))) == 0 {
		return nil, ErrNoDecision
	}
	// Partial evaluation is not used. It saves a third of a decision's
	// allocations, but inlines the policy's data: the default policy takes two
	// seconds to load with an allow list of 100 entries, and 40 with 10,000.
	q, err := rego.New(rego.Query(Entrypoint), rego.Compiler(compiler), rego.Store(store)).PrepareForEval(ctx)
	if err != nil {
		return nil, err
	}
	return &program{
		query: q, revision: l.revision, digest: l.digest,
		modules: sortedKeys(l.modules), known: known,
	}, nil
}

// newCompiler returns a compiler with what policies may use; print is for the
// tests of a policy, elsewhere its calls do nothing.
func newCompiler(conflicts func([]string) (bool, error), print bool) *ast.Compiler {
	return ast.NewCompiler().
		WithCapabilities(Capabilities()).
		WithStrict(true).
		WithEnablePrintStatements(print).
		WithDefaultRegoVersion(ast.RegoV1).
		WithPathConflictsCheck(conflicts)
}

// explain adds, to errors of calls to disabled builtins, why they are.
func explain(errs ast.Errors) error {
	for _, e := range errs {
		_, name, ok := strings.Cut(e.Message, "undefined function ")
		if why, off := DisabledBuiltins()[name]; ok && off {
			return fmt.Errorf("%w (%s is disabled: it %s)", errs, name, why)
		}
	}
	return errs
}

// load reads, parses and compiles a policy. Its errors wrap ErrLoad.
func load(ctx context.Context, s Source, known []string) (*program, error) {
	files, err := s.read(false)
	if err == nil {
		var l *loaded
		if l, err = s.parse(files); err == nil {
			var p *program
			if p, err = l.compile(ctx, known); err == nil {
				return p, nil
			}
		}
	}
	return nil, fmt.Errorf("%w %s: %w", ErrLoad, s.name(), err)
}

// input returns what the policy sees of e, and its JSON.
func input(e *event.Event) (ast.Value, []byte, error) {
	b, err := event.Marshal(e)
	if err != nil {
		return nil, nil, err
	}
	if len(b) > event.MaxLine {
		return nil, nil, fmt.Errorf("event: %w: %d bytes, at most %d", ErrTooLarge, len(b), event.MaxLine)
	}
	v, err := ast.ValueFromReader(strings.NewReader(string(b)))
	if err != nil {
		return nil, nil, fmt.Errorf("event: %w", err)
	}
	obj, ok := v.(ast.Object)
	if !ok {
		return nil, nil, errors.New("event is no object")
	}
	obj.Insert(ast.StringTerm("now"), ast.NumberTerm(json.Number(fmt.Sprint(e.Time.UnixNano()))))
	return obj, b, nil
}

// eval evaluates the policy for an input made by input. It returns when OPA
// notices that ctx is done, which is not at once.
func (p *program) eval(ctx context.Context, in ast.Value, at time.Time) (r Result, warnings []string, err error) {
	defer func() {
		if x := recover(); x != nil {
			err = fmt.Errorf("evaluate: panic: %v", x)
		}
	}()
	cancel := topdown.NewCancel()
	defer context.AfterFunc(ctx, cancel.Cancel)()
	var builtinErrs []topdown.Error
	rs, err := p.query.Eval(ctx,
		rego.EvalParsedInput(in),
		rego.EvalTime(at), // what is left that knows a time: checks of certificates and tokens
		rego.EvalExternalCancel(cancel),
		rego.EvalBuiltinErrorList(&builtinErrs),
	)
	for i := range builtinErrs {
		if len(warnings) < maxWarnings {
			warnings = append(warnings, builtinErrs[i].Error())
		}
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return Result{}, warnings, ctx.Err()
	case err != nil:
		return Result{}, warnings, fmt.Errorf("evaluate: %w", err)
	case len(rs) == 0 || len(rs[0].Expressions) == 0:
		return Result{}, warnings, ErrUndefined
	}
	r, err = decodeResult(rs[0].Expressions[0].Value, p.known)
	return r, warnings, err
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
