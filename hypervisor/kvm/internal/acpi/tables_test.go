package acpi

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/layout"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// tables follows the pointers as a guest does and returns the tables by name.
func tables(t *testing.T, room []byte) map[string][]byte {
	t.Helper()
	le := binary.LittleEndian
	at := func(gpa uint64) []byte {
		off := gpa - uint64(layout.ACPITables)
		b := room[off:]
		n := le.Uint32(b[4:])
		if sum := checksum(b[:n]); sum != 0 && string(b[:4]) != "FACS" {
			t.Errorf("checksum of %q is off by %d", b[:4], sum)
		}
		return b[:n]
	}
	if string(room[:8]) != "RSD PTR " || checksum(room[:20]) != 0 || checksum(room[:36]) != 0 {
		t.Fatal("no root pointer")
	}
	xsdt := at(le.Uint64(room[24:]))
	out := map[string][]byte{}
	for p := xsdt[headerSize:]; len(p) >= 8; p = p[8:] {
		b := at(le.Uint64(p))
		out[string(b[:4])] = b
	}
	out["DSDT"] = at(le.Uint64(out["FACP"][140:]))
	out["FACS"] = at(uint64(le.Uint32(out["FACP"][36:])))
	return out
}

// The reference compiler takes all tables apart without a complaint, and makes
// the same byte code of what it read in the DSDT.
func TestAgainstReferenceCompiler(t *testing.T) {
	iasl, err := exec.LookPath("iasl")
	if err != nil {
		labtest.Missing(t, "no iasl here: install acpica-tools")
	}
	room, err := Build(4)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := func(args ...string) string {
		cmd := exec.CommandContext(t.Context(), iasl, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("iasl %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	complaint := regexp.MustCompile(`(?i)(error|warning|invalid|incorrect|bad)[^\n]*`)
	for name, b := range tables(t, room) {
		if err := os.WriteFile(filepath.Join(dir, name+".aml"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		out := run("-d", name+".aml")
		text, err := os.ReadFile(filepath.Join(dir, name+".dsl"))
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		for _, s := range []string{out, string(text)} {
			for _, c := range complaint.FindAllString(s, -1) {
				if !strings.Contains(c, "0 Error") {
					t.Errorf("%s: %s", name, c)
				}
			}
		}
	}
	out := run("-p", "again", "DSDT.dsl")
	if !strings.Contains(out, "0 Errors, 0 Warnings") {
		t.Errorf("the DSDT does not compile again:\n%s", out)
	}
	again, err := os.ReadFile(filepath.Join(dir, "again.aml"))
	if err != nil {
		t.Fatal(err)
	}
	if mine := tables(t, room)["DSDT"]; !bytes.Equal(again[headerSize:], mine[headerSize:]) {
		at := headerSize
		for at < min(len(again), len(mine)) && again[at] == mine[at] {
			at++
		}
		t.Errorf("the compiler makes %d bytes of the DSDT, we %d; from %d on %x, ours %x",
			len(again), len(mine), at, again[at:min(at+16, len(again))], mine[at:min(at+16, len(mine))])
	}
}

func TestProcessors(t *testing.T) {
	room, err := Build(64)
	if err != nil {
		t.Fatal(err)
	}
	cpus := 0
	for e := tables(t, room)["APIC"][headerSize+8:]; len(e) > 1; e = e[e[1]:] {
		if e[0] == 0 {
			if int(e[3]) != cpus || e[4] != 1 {
				t.Errorf("processor %d has APIC ID %d, flags %d", cpus, e[3], e[4])
			}
			cpus++
		}
	}
	if cpus != 64 {
		t.Errorf("%d processors", cpus)
	}
}
