package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode"

	"github.com/vantage-vmi/vantage/introspect/linux"
	"github.com/vantage-vmi/vantage/node"
	"github.com/vantage-vmi/vantage/scanner"
)

// What a terminal acts on, or a reader is misled by: escape, DEL, the C1 form of
// "ESC [", right-to-left override, line separator, a byte that is no UTF-8.
const hostile = "a\x1b[2J\x7f\u009b31m\u202egnp.exe\u2028\xff<b>"

func TestJSONIsSafeOnATerminal(t *testing.T) {
	for name, v := range map[string]any{
		"process": &linux.Process{Comm: hostile, Exe: hostile, Args: []string{hostile}, Cgroup: hostile, Container: hostile},
		"module":  &linux.Module{Name: hostile},
		"info":    vmInfo{Guest: &linux.Info{Hostname: hostile, CommandLine: hostile, Version: hostile}},
		"finding": node.Finding{Finding: scanner.Finding{Comm: hostile, Where: hostile}}.Finding,
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			a := &app{stdout: &out, stderr: &errs, json: true}
			if err := a.printJSON(v); err != nil {
				t.Fatal(err)
			}
			if err := a.printJSONTo(v); err != nil {
				t.Fatal(err)
			}
			for _, text := range []string{out.String(), errs.String()} {
				line, ok := strings.CutSuffix(text, "\n")
				if !ok || strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
					t.Errorf("%q", text)
				}
				// Nothing is lost: bytes that are no UTF-8 are spelt out.
				if !json.Valid([]byte(line)) || !strings.Contains(line, `\\xff`) || strings.Contains(line, `\ufffd`) {
					t.Errorf("%s", line)
				}
			}
		})
	}
}
