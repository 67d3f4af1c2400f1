package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/introspect/linux"
)

func TestLogLevels(t *testing.T) {
	for _, c := range []struct {
		names []string
		want  string
	}{
		{nil, "11111111"},
		{[]string{"err"}, "00010000"},
		{[]string{"err+"}, "11110000"},
		{[]string{"emerg", "debug"}, "10000001"},
	} {
		wanted, err := parseLevels(c.names)
		got := ""
		for _, w := range wanted {
			got += map[bool]string{true: "1", false: "0"}[w]
		}
		if err != nil || got != c.want {
			t.Errorf("%q: %s, want %s, %v", c.names, got, c.want, err)
		}
	}
	if _, err := parseLevels([]string{"error"}); err == nil {
		t.Error("a level that there is not")
	}
}

func TestLogLines(t *testing.T) {
	r := linux.LogRecord{
		SinceBoot: 12*time.Second + 34567*time.Microsecond, Time: time.Unix(1_700_000_000, 0), Level: 3, Text: "one\x1b[0m\ntwo",
	}
	for want, c := range map[string]struct{ human, json bool }{
		"[   12.034567] one\\x1b[0m\n               two\n":               {},
		"[2023-11-14 22:13:20] one\\x1b[0m\n                      two\n": {human: true},
		`"level":"err","facility":"kern","since_boot_ns":12034567000,`:   {json: true},
	} {
		var out bytes.Buffer
		a := &app{stdout: &out, json: c.json}
		if err := a.printLogRecord(&r, c.human); err != nil {
			t.Fatal(err)
		}
		if got := out.String(); got != want && (!c.json || !strings.Contains(got, want)) {
			t.Errorf("%+v: %q, want %q", c, got, want)
		}
	}
}
