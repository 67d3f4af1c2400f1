package term

import (
	"bytes"
	"strings"
	"testing"
	"unicode"
)

func TestEscapeNeutralisesWhatATerminalActsOn(t *testing.T) {
	for in, want := range map[string]string{
		"nginx":              "nginx",
		"":                   "",
		"a\x1b[2Jb":          `a\x1b[2Jb`,
		"tab\tnl\n":          `tab\x09nl\x0a`,
		"bad\xffbyte":        `bad\xffbyte`,
		`back\slash`:         `back\\slash`,
		"grün 日本":            "grün 日本",
		"rtl\u202egnp.exe":   `rtl\u202egnp.exe`,
		"c1\u009b31m":        `c1\u009b31m`,
		"tag\U000e0041":      `tag\U000e0041`,
		"zero\u200bwidth":    `zero\u200bwidth`,
		"del\x7f":            `del\x7f`,
		"line\u2028separate": `line\u2028separate`,
	} {
		if got := Escape(in); got != want {
			t.Errorf("Escape(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzEscape(f *testing.F) {
	f.Add("x\x1b]0;owned\a")
	f.Add("\xc3\x28")
	f.Fuzz(func(t *testing.T, s string) {
		for _, r := range Escape(s) {
			if !unicode.IsPrint(r) {
				t.Fatalf("Escape(%q) lets %U through", s, r)
			}
		}
	})
}

func TestTableAlignsAndEscapes(t *testing.T) {
	tab := NewTable(Column{Title: "PID", Right: true}, Column{Title: "COMM"}, Column{Title: "ARGS", Flex: true})
	tab.Row("1", "init", "/sbin/init\x1b[31m")
	tab.Row("1234", "日本", strings.Repeat("x", 300))
	var b bytes.Buffer
	if err := tab.Print(&b); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(b.String(), "\n")
	if want := "   1  init  /sbin/init\\x1b[31m"; lines[1] != want {
		t.Errorf("row 1 = %q, want %q", lines[1], want)
	}
	// Into a pipe nothing is cut: the next program wants all of it.
	if want := "1234  日本  " + strings.Repeat("x", 300); lines[2] != want {
		t.Errorf("row 2 = %q, want %q", lines[2], want)
	}
}
