package linux

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestOSRelease(t *testing.T) {
	for text, want := range map[string][2]string{
		"":                                   {"", ""},
		"NAME=Alpine\nVERSION_ID=3.20":       {"Alpine", "3.20"},
		"PRETTY_NAME='one \\$two'\nNAME=x\n": {`one \$two`, ""},
		"#NAME=no\nNAME=\"a \\\"b\\\"\"\r\n": {`a "b"`, ""},
		"PRETTY_NAME=\"\nVERSION_ID=\\":      {`"`, `\`},
	} {
		name, version := parseOSRelease(text)
		if name != want[0] || version != want[1] {
			t.Errorf("%q: %q, %q", text, name, version)
		}
	}
}

func FuzzOSRelease(f *testing.F) {
	f.Add("PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\n")
	f.Add("NAME='\\")
	f.Fuzz(func(t *testing.T, text string) {
		if name, version := parseOSRelease(text); len(name)+len(version) > len(text) {
			t.Errorf("%q: %q, %q", text, name, version)
		}
	})
}

func TestTaint(t *testing.T) {
	if got := taintOf(0); got.Letters != "" || got.Reasons == nil {
		t.Errorf("%+v", got)
	}
	got := taintOf(1<<0 | 1<<12 | 1<<19 | 1<<40)
	if got.Letters != "POJ?" || len(got.Reasons) != 4 || !strings.Contains(got.Reasons[3], "40") {
		t.Errorf("%+v", got)
	}
}

func TestMountOptions(t *testing.T) {
	if got := mountOptions(mntReadOnly | mntNoSUID | mntRelATime); got != "ro,nosuid,relatime" {
		t.Error(got)
	}
	if got := superOptions(sbSynchronous | sbLazyTime); got != "rw,sync,lazytime" {
		t.Error(got)
	}
}

func TestInfoAsJSON(t *testing.T) {
	b, err := json.Marshal(Info{OS: "linux", Uptime: 1500 * time.Millisecond, OSName: "a\xff", LSMs: []string{"b\xff"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"os":"linux"`, `"uptime_seconds":1.5`, `"os_name":"a\\xff"`, `"lsms":["b\\xff"]`, `"load_averages":[0,0,0]`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %s in %s", want, b)
		}
	}
}
