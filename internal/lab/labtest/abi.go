package labtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// ABIValue is a number that code of ours has in common with the headers that
// programs are built with (linux/kvm.h, linux/vhost.h).
type ABIValue struct {
	Expr string // in C: "KVM_RUN", "sizeof(struct kvm_regs)", "offsetof(struct kvm_run, mmio)"
	Ours uint64
}

// CheckABI compares values with what a C compiler makes of this machine's
// headers. A macro that these do not have yet is named in the log.
func CheckABI(t *testing.T, headers []string, values []ABIValue) {
	t.Helper()
	cc, err := exec.LookPath("cc")
	if err != nil {
		Missing(t, "no C compiler here")
	}
	var src strings.Builder
	for _, h := range append([]string{"stddef.h", "stdio.h"}, headers...) {
		fmt.Fprintf(&src, "#include <%s>\n", h)
	}
	src.WriteString("int main(void) {\n")
	for i, v := range values {
		guard := firstName.FindString(v.Expr)
		if guard == "sizeof" || guard == "offsetof" {
			guard = ""
		}
		if guard != "" {
			fmt.Fprintf(&src, "#ifdef %s\n", guard)
		}
		fmt.Fprintf(&src, "printf(\"%d %%llu\\n\", (unsigned long long)(%s));\n", i, v.Expr)
		if guard != "" {
			src.WriteString("#endif\n")
		}
	}
	src.WriteString("return 0; }\n")
	dir := t.TempDir()
	file, bin := filepath.Join(dir, "abi.c"), filepath.Join(dir, "abi")
	if err := os.WriteFile(file, []byte(src.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), cc, "-w", "-o", bin, file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), bin).Output()
	if err != nil {
		t.Fatal(err)
	}
	theirs := map[int]uint64{}
	for line := range strings.Lines(string(out)) {
		var i int
		var v uint64
		if _, err := fmt.Sscanf(line, "%d %d", &i, &v); err != nil {
			t.Fatal(err)
		}
		theirs[i] = v
	}
	if len(theirs) < len(values)/2 {
		t.Errorf("these headers have %d of %d values", len(theirs), len(values))
	}
	for i, v := range values {
		got, ok := theirs[i]
		switch {
		case !ok:
			t.Logf("these headers do not have %s", v.Expr)
		case got != v.Ours:
			t.Errorf("%s is %#x, we have %#x", v.Expr, got, v.Ours)
		}
	}
}
