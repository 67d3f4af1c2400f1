package labtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
)

// Constant is a number that code of ours has in common with Linux.
type Constant struct {
	Header string // "include/linux/sched.h"
	Name   string // "PF_KTHREAD", or an expression of several
	// Holds reports whether ours fits to what a kernel's headers say.
	Holds func(theirs uint64) bool
}

// Is is a Constant's Holds: the two are equal.
func Is(ours uint64) func(uint64) bool { return func(theirs uint64) bool { return theirs == ours } }

// CheckConstants compares constants with the headers of the kernels of all
// suites. A kernel may lack one (it came later, or went), but not all kernels.
func CheckConstants(t *testing.T, constants []Constant) {
	t.Helper()
	if testing.Short() {
		t.Skip("downloads kernel headers: not with -short")
	}
	cc, err := exec.LookPath("cc")
	if err != nil {
		Missing(t, "no C compiler here")
	}
	seen := map[string]bool{}
	for _, suite := range lab.Suites() {
		dir, err := lab.FetchHeaders(t.Context(), suite)
		check(t, err)
		for i, v := range evaluate(t, cc, dir, constants) {
			c := constants[i]
			seen[c.Name] = true
			if !c.Holds(v) {
				t.Errorf("%s: %s says that %s is %#x", filepath.Base(dir), c.Header, c.Name, v)
			}
		}
	}
	for _, c := range constants {
		if !seen[c.Name] {
			t.Errorf("no kernel has %s in %s", c.Name, c.Header)
		}
	}
}

// prelude is what the headers' macros need of headers that are not read.
const prelude = `#include <stdio.h>
#include <limits.h>
#undef NAME_MAX
#define CONFIG_64BIT 1
#define CONFIG_X86_64 1
#define CONFIG_MMU 1
#define CONFIG_BASE_SMALL 0
#define IS_ENABLED(x) 0
#define PAGE_SIZE 4096
#define BIT(n) (1UL << (n))
#define _AC(x, y) x##y
#define _AT(t, x) ((t)(x))
#define __force
#define fmode_t unsigned
#define pteval_t unsigned long
#define u32 unsigned
`

var (
	firstName = regexp.MustCompile(`[A-Za-z_]\w*`)
	// comment, which may begin on a line that is kept and end on one that is not.
	comment = regexp.MustCompile(`(?s)/\*.*?\*/`)
	// bitList is how mm.h lists the bits of vm_flags from 6.19 on.
	bitList = regexp.MustCompile(`DECLARE_VMA_BIT\((\w+),\s*(\d+)\)`)
)

// evaluate returns the constants that a kernel has, by their index. Headers of
// the kernel do not compile in a program; their preprocessor lines do.
func evaluate(t *testing.T, cc, dir string, constants []Constant) map[int]uint64 {
	t.Helper()
	var src strings.Builder
	src.WriteString(prelude)
	done := map[string]bool{}
	for _, c := range constants {
		if done[c.Header] {
			continue
		}
		done[c.Header] = true
		b, err := os.ReadFile(filepath.Join(dir, c.Header))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		src.WriteString(directives(string(b)))
		for _, m := range bitList.FindAllStringSubmatch(string(b), -1) {
			fmt.Fprintf(&src, "#define VMA_%s_BIT %s\n", m[1], m[2])
		}
	}
	src.WriteString("int main(void) {\n")
	for i, c := range constants {
		fmt.Fprintf(&src, "#ifdef %s\nprintf(\"%d %%llu\\n\", (unsigned long long)(%s));\n#endif\n", firstName.FindString(c.Name), i, c.Name)
	}
	src.WriteString("return 0; }\n")
	tmp := t.TempDir()
	file, bin := filepath.Join(tmp, "abi.c"), filepath.Join(tmp, "abi")
	if err := os.WriteFile(file, []byte(src.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), cc, "-w", "-o", bin, file).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", filepath.Base(dir), err, out)
	}
	out, err := exec.CommandContext(t.Context(), bin).Output()
	if err != nil {
		t.Fatal(err)
	}
	values := map[int]uint64{}
	for line := range strings.Lines(string(out)) {
		index, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		i, err := strconv.Atoi(index)
		if err != nil {
			t.Fatal(err)
		}
		if values[i], err = strconv.ParseUint(value, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	return values
}

// directives returns the preprocessor lines of a header, without its includes.
func directives(header string) string {
	var out strings.Builder
	more := false
	for line := range strings.Lines(comment.ReplaceAllString(header, " ")) {
		word := strings.TrimLeft(line, " \t")
		if !more && (!strings.HasPrefix(word, "#") || strings.HasPrefix(strings.TrimLeft(word[1:], " \t"), "include") || strings.HasPrefix(word, "#error")) {
			continue
		}
		out.WriteString(line)
		more = strings.HasSuffix(strings.TrimRight(line, "\n"), `\`)
	}
	return out.String()
}
