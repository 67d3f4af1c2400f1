package scanner

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
)

func TestFindingJSON(t *testing.T) {
	m := newRAM(4)
	noise(m.bytes)
	p, s := process(7, pages(heap, 1, "[heap]"))
	s.mapPages(heap, 2)
	s.write(m, heap+16, "NEEDLE\x00\x1b\\\"<é")
	r := mustRules(t, `rule r : tag1 tag2 { meta: severity = "high" level = 3 strings: $n = /NEEDLE.{0,7}/ condition: $n }`)
	fs, sum := runScan(t, m, r, []Target{p, PhysicalTarget{}}, Options{VM: "vm"})
	if len(fs) != 2 {
		t.Fatalf("%+v", fs)
	}
	for i, want := range []string{
		`{"vm":"vm","rule":"r","namespace":"t/r.yar","tags":["tag1","tag2"],"meta":{"level":3,"severity":"high"},"pid":7,"comm":"proc7","where":"[heap]","offset":16,"virt_addr":"0x555500000010","phys_addr":"0x2010",` +
			`"strings":[{"name":"$n","offset":16,"virt_addr":"0x555500000010","phys_addr":"0x2010","data":"NEEDLE\\x00\\x1b\\\\\"\u003c\\xc3\\xa9","length":13}]}`,
		`{"vm":"vm","rule":"r","namespace":"t/r.yar","tags":["tag1","tag2"],"meta":{"level":3,"severity":"high"},"pid":0,"comm":"","where":"[physical]","offset":8208,"virt_addr":null,"phys_addr":"0x2010",` +
			`"strings":[{"name":"$n","offset":8208,"virt_addr":null,"phys_addr":"0x2010","data":"NEEDLE\\x00\\x1b\\\\\"\u003c\\xc3\\xa9","length":13}]}`,
	} {
		got, err := json.Marshal(fs[i])
		if err != nil || string(got) != want {
			t.Errorf("finding %d (%v)\n got %s\nwant %s", i, err, got, want)
		}
	}
	sum.DurationSeconds = 0.5
	want := `{"summary":true,"vm":"vm","rules":1,"pages_total":5,"pages_read":5,"pages_skipped":0,"pages_unreadable":0,"pages_swapped":0,"pages_not_ram":0,"pages_timed_out":0,"pages_left":0,` +
		`"bytes_scanned":20480,"bytes_from_cache":0,"findings":2,"duration_seconds":0.5,"complete":true,"problems_total":0}`
	if got, err := json.Marshal(sum); err != nil || string(got) != want {
		t.Errorf("summary (%v)\n got %s\nwant %s", err, got, want)
	}
}

func FuzzEscape(f *testing.F) {
	f.Add([]byte("plain \\ \x00\x1b[31m\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := Escape(b)
		if strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e }) {
			t.Errorf("%q has what is not printable", s)
		}
		back, err := strconv.Unquote(`"` + strings.ReplaceAll(s, `"`, `\"`) + `"`)
		if err != nil || back != string(b) {
			t.Errorf("%q became %q (%v)", b, back, err)
		}
	})
}
