package labtest

import (
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/internal/lab"
)

// InsideNested reports whether this test binary runs in the guest of Nested.
func InsideNested() bool { return os.Getenv(lab.EnvNested) != "" }

// NestedGroup runs the tests that fn starts (with t.Run) inside a guest with
// real KVM and nested paging (lab.RunNested) and reports each of them as a
// subtest of t, a top-level test. Kernel defaults to bookworm's; Binary is built
// here, without cgo, unless it is set; InnerKernel must be set for tests that
// boot guests there.
//
//	func TestUnderKVM(t *testing.T) {
//		k := labtest.Kernel(t, lab.Bookworm)
//		labtest.NestedGroup(t, lab.NestedConfig{InnerKernel: k}, func(t *testing.T) {
//			t.Run("registers", func(t *testing.T) {
//				g := labtest.Boot(t, lab.Config{Kernel: k, Accel: "kvm", Append: "quiet", …})
//				…
//			})
//		})
//	}
//
// A test that skips inside is one that skips here, and on CI one that fails.
// cfg is not used inside.
func NestedGroup(t *testing.T, cfg lab.NestedConfig, fn func(t *testing.T)) {
	t.Helper()
	if InsideNested() {
		defer holdKVM(t)()
		fn(t)
		return
	}
	run := "^" + t.Name() + "$"
	// What of the group was asked for (go test -run TestX/part).
	if f := flag.Lookup("test.run"); f != nil {
		if _, part, ok := strings.Cut(f.Value.String(), "/"); ok {
			run += "/" + part
		}
	}
	runNested(t, run, t.Name()+"/", cfg)
}

// holdKVM keeps a VM with a vCPU, so that those of tests are never the first or the
// last one: then Linux patches its own code, on which the processors that QEMU's
// threads emulate stumble now and then (an oops of the outer kernel, or a hang).
func holdKVM(t *testing.T) (release func()) {
	t.Helper()
	const createVM, createVCPU = 0xae01, 0xae41 // KVM_CREATE_VM, KVM_CREATE_VCPU
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	vm, err := unix.IoctlRetInt(int(kvm.Fd()), createVM)
	if err != nil {
		t.Fatal(err)
	}
	vcpu, err := unix.IoctlRetInt(vm, createVCPU)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		for _, fd := range []int{vcpu, vm} {
			if err := unix.Close(fd); err != nil {
				t.Error(err)
			}
		}
		kvm.Close()
	}
}

// runNested reports the tests whose names begin with prefix, without it.
func runNested(t *testing.T, run, prefix string, cfg lab.NestedConfig) {
	t.Helper()
	if cfg.Kernel == nil {
		cfg.Kernel = Kernel(t, lab.Bookworm)
	}
	if cfg.Binary == "" {
		cfg.Binary = buildTest(t)
	}
	r := attempt(t, run, cfg)
	for again := cfg.Tries - 1; again > 0; again-- {
		part, failed := failedParts(r, prefix)
		if r != nil && r.Passed && !failed {
			break
		}
		if part != "" {
			run = "^" + strings.TrimSuffix(prefix, "/") + "$/^(" + part + ")$"
		}
		t.Logf("tried again: %s", run)
		next := attempt(t, run, cfg)
		if r != nil && next != nil && part != "" {
			next.Tests = append(passedOf(r, prefix), next.Tests...)
		}
		r = next
	}
	if r == nil {
		t.FailNow() // attempt has told why
	}
	n := 0
	for _, nt := range r.Tests {
		name, ok := strings.CutPrefix(nt.Name, prefix)
		if !ok {
			continue
		}
		n++
		t.Run(name, func(t *testing.T) {
			switch nt.Outcome {
			case lab.OutcomePass:
				if nt.Output != "" {
					t.Logf("inside:\n%s", nt.Output)
				}
			case lab.OutcomeSkip:
				Missing(t, "inside:\n%s", nt.Output)
			default:
				t.Errorf("inside: %s\n%s", nt.Outcome, nt.Output)
			}
		})
	}
	if n == 0 || !r.Passed {
		t.Errorf("%d tests ran inside, passed: %v; the outer guest's console ends:\n%s",
			n, r.Passed, lastBytes(r.Console, 16<<10))
	}
}

// attempt runs the group once. What fails in one that is not the last is logged;
// nil says that the outer guest did not come to an end.
func attempt(t *testing.T, run string, cfg lab.NestedConfig) *lab.NestedResult {
	t.Helper()
	cfg.Args = append(slices.Clone(cfg.Args), "-test.run="+run)
	r, err := lab.RunNested(t.Context(), cfg)
	var died *lab.GuestError
	switch {
	case errors.As(err, &died):
		t.Log(err)
		return nil
	case err != nil:
		check(t, err)
	}
	for _, nt := range r.Tests {
		if nt.Outcome != lab.OutcomePass && nt.Outcome != lab.OutcomeSkip {
			t.Logf("inside: %s: %s\n%s", nt.Outcome, nt.Name, nt.Output)
		}
	}
	return r
}

// failedParts returns a pattern of the subtests that did not pass.
func failedParts(r *lab.NestedResult, prefix string) (pattern string, failed bool) {
	if r == nil {
		return "", true
	}
	var names []string
	for _, nt := range r.Tests {
		name, ok := strings.CutPrefix(nt.Name, prefix)
		if !ok || nt.Outcome == lab.OutcomePass || nt.Outcome == lab.OutcomeSkip {
			continue
		}
		name, _, _ = strings.Cut(name, "/")
		if !slices.Contains(names, regexp.QuoteMeta(name)) {
			names = append(names, regexp.QuoteMeta(name))
		}
	}
	return strings.Join(names, "|"), len(names) > 0
}

// passedOf returns the subtests that did not fail.
func passedOf(r *lab.NestedResult, prefix string) (tests []lab.NestedTest) {
	for _, nt := range r.Tests {
		if strings.HasPrefix(nt.Name, prefix) && (nt.Outcome == lab.OutcomePass || nt.Outcome == lab.OutcomeSkip) {
			tests = append(tests, nt)
		}
	}
	return tests
}

// buildTest builds the calling package's test binary (go test runs tests in the
// package's folder) so that it needs nothing but a kernel.
func buildTest(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nested.test")
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the nested test binary: %v\n%s", err, out)
	}
	return path
}

// lastBytes returns the end of s, control bytes other than line feeds and tabs
// replaced: it goes to a terminal.
func lastBytes(s string, n int) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 && r != '\n' && r != '\t' || r == 0x7f {
			return '?'
		}
		return r
	}, s[max(0, len(s)-n):])
}
