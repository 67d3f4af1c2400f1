package labtest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
)

// InsideNested reports whether this test binary runs in the guest of Nested.
func InsideNested() bool { return os.Getenv(lab.EnvNested) != "" }

// Nested runs tests of the calling package, those whose names match the regular
// expression run, inside a guest with real KVM and nested paging
// (lab.RunNested), and reports each of them as a subtest of t. Kernel defaults
// to bookworm's; Binary is built here, without cgo, unless it is set; InnerKernel
// must be set for tests that boot guests there.
//
//	func TestNested(t *testing.T) {
//		k := labtest.Kernel(t, lab.Bookworm)
//		labtest.Nested(t, "^TestInner", lab.NestedConfig{InnerKernel: k})
//	}
//
//	func TestInnerRegisters(t *testing.T) {
//		labtest.OnlyNested(t)
//		g := labtest.Boot(t, lab.Config{Kernel: labtest.Kernel(t, lab.Bookworm), Accel: "kvm", …})
//	}
//
// A test that skips inside is one that skips here, and on CI one that fails.
func Nested(t *testing.T, run string, cfg lab.NestedConfig) {
	t.Helper()
	if InsideNested() {
		t.Skip("runs on the outside of the nested bed")
	}
	if cfg.Kernel == nil {
		cfg.Kernel = Kernel(t, lab.Bookworm)
	}
	if cfg.Binary == "" {
		cfg.Binary = filepath.Join(t.TempDir(), "nested.test")
		cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", cfg.Binary, ".")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			t.Fatalf("build the nested test binary: %v\n%s", err, out.String())
		}
	}
	cfg.Args = append(cfg.Args, "-test.run="+run)
	r, err := lab.RunNested(t.Context(), cfg)
	check(t, err)
	if len(r.Tests) == 0 {
		t.Errorf("no test matched %s inside; the binary printed:\n%s", run, r.Output)
	}
	for _, nt := range r.Tests {
		t.Run(nt.Name, func(t *testing.T) {
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
	if t.Failed() || !r.Passed {
		const most = 8 << 10
		out := r.Console
		t.Errorf("end of the outer guest's console:\n%s", out[max(0, len(out)-most):])
	}
}

// OnlyNested skips a test that makes sense only inside the guest of Nested. It
// runs there, so this is not a skip that CI minds.
func OnlyNested(t testing.TB) {
	t.Helper()
	if !InsideNested() {
		t.Skip("runs inside the nested bed")
	}
}
