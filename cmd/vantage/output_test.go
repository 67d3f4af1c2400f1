package main

import (
	"bytes"
	"encoding"
	"encoding/json"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/vantage-vmi/vantage/event"
	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
	"github.com/vantage-vmi/vantage/introspect/linux"
	"github.com/vantage-vmi/vantage/node"
	"github.com/vantage-vmi/vantage/policy"
	"github.com/vantage-vmi/vantage/scanner"
)

// What a terminal acts on, or a reader is misled by: escape, DEL, the C1 form of
// "ESC [", right-to-left override, line separator, a byte that is no UTF-8.
const hostile = "a\x1b[2J\x7f\u009b31m\u202egnp.exe\u2028\xff<b>"

func TestJSONIsSafeOnATerminal(t *testing.T) {
	for name, v := range map[string]any{
		"process": &linux.Process{Comm: hostile, Exe: hostile, Args: []string{hostile}, Cgroup: hostile, Container: hostile},
		"module":  &linux.Module{Name: hostile},
		"cached":  linux.CachedFile{Path: hostile, FSType: hostile, Device: hostile},
		"info":    vmInfo{Guest: &linux.Info{Hostname: hostile, CommandLine: hostile, Version: hostile}},
		"finding": node.Finding{Finding: scanner.Finding{Comm: hostile, Where: hostile}}.Finding,
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			a := &app{stdout: &out, stderr: &errs, json: true}
			if err := a.printJSON(v); err != nil {
				t.Fatal(err)
			}
			if err := a.printJSONErr(v); err != nil {
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

var snake = regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)

// checkKeys fails the test for each key of t's JSON form that is not in snake
// case: the names are a contract.
func checkKeys(t *testing.T, path string, typ reflect.Type, seen map[reflect.Type]bool) {
	t.Helper()
	switch typ.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
		checkKeys(t, path, typ.Elem(), seen)
		return
	case reflect.Struct:
	default:
		return
	}
	if seen[typ] || typ == reflect.TypeFor[time.Time]() || typ.Implements(reflect.TypeFor[encoding.TextMarshaler]()) {
		return
	}
	seen[typ] = true
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-", !f.IsExported() && !f.Anonymous:
		case f.Anonymous && name == "":
			checkKeys(t, path, f.Type, seen)
		case !snake.MatchString(name):
			t.Errorf("%s.%s (%s): key %q", path, f.Name, typ, name)
		default:
			checkKeys(t, path+"."+name, f.Type, seen)
		}
	}
}

func TestJSONKeysAreSnakeCase(t *testing.T) {
	for name, typ := range map[string]reflect.Type{
		"vms": reflect.TypeFor[hypervisor.Info](), "info": reflect.TypeFor[vmInfo](),
		"ps": reflect.TypeFor[linux.Process](), "modules": reflect.TypeFor[linux.Module](),
		"files": reflect.TypeFor[linux.File](), "extract": reflect.TypeFor[extracted](), "files --cached": reflect.TypeFor[linux.CachedFile](),
		"maps":    reflect.TypeFor[linux.Area](),
		"dmesg":   reflect.TypeFor[linux.LogRecord](),
		"sockets": reflect.TypeFor[linux.Socket](),
		"finding": reflect.TypeFor[scanner.Finding](), "summary": reflect.TypeFor[totals](),
		"policy test": reflect.TypeFor[policy.TestReport](), "policy eval": reflect.TypeFor[policy.EvalResult](),
		"policy replay": reflect.TypeFor[policy.ReplayReport](), "change": reflect.TypeFor[policy.Change](),
		"event": reflect.TypeFor[event.Event](), "version": reflect.TypeFor[versionInfo](), "decision": reflect.TypeFor[policy.Decision](),
		"problem": reflect.TypeFor[introspect.Problem](), "input": reflect.TypeFor[policy.Input](),
	} {
		checkKeys(t, name, typ, map[reflect.Type]bool{})
	}
}
