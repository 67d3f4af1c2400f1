package scanner_test

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/image"
	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
	"github.com/vantage-vmi/vantage/introspect/linux"
	"github.com/vantage-vmi/vantage/rules/yara"
	"github.com/vantage-vmi/vantage/scanner"
)

// truthRules match often in any Linux guest, in the ways that rules can: text,
// wide, nocase, whole words, hex with gaps, regular expressions, anchors. Each
// condition needs one string only: see the package comment for what conditions
// over several strings mean.
const truthRules = `
rule text { strings: $a = "linux_banner" $b = "/bin/busybox" $c = "PATH=/" condition: any of them }
rule word { strings: $a = "init" fullword condition: $a }
rule wide_text { strings: $a = "E" wide fullword $b = "Linux" wide ascii nocase condition: any of them }
rule elf { strings: $a = { 7F 45 4C 46 02 01 01 (00|03) 00 00 00 00 00 00 00 00 [2] 3E 00 01 } condition: $a }
rule expression { strings: $a = /GCC: \(Debian [0-9.\-]{3,20}\)/ $b = /[a-z]{3,8}_sysctl_[a-z]+/ condition: any of them }
rule gap { strings: $a = { 55 48 89 E5 [4-40] C9 C3 } condition: $a }
rule payload { strings: $a = "VANTAGE-TEST-PAYLOAD-" condition: $a }
`

// place is one match: what the yara command prints with -s and -L.
type place struct {
	rule, str string
	offset    uint64
	length    int
}

// yaraCommand runs the yara command on a file, and returns the matches that are
// no longer in what a hole of the file's zeros can add.
func yaraCommand(t *testing.T, rules, file string) []place {
	t.Helper()
	bin, err := exec.LookPath("yara")
	if err != nil {
		labtest.Missing(t, "needs the yara command: %v", err)
	}
	cmd := exec.CommandContext(t.Context(), bin, "-w", "-s", "-L", rules, file)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("yara: %v: %s", err, stderr.String())
	}
	var ps []place
	rule := ""
	sc := bufio.NewScanner(bytes.NewReader(out))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := sc.Text()
		if !strings.HasPrefix(line, "0x") {
			rule, _, _ = strings.Cut(line, " ")
			continue
		}
		f := strings.SplitN(line, ":", 4) // 0xOFFSET:LENGTH:$NAME: DATA
		off, err1 := strconv.ParseUint(f[0], 0, 64)
		n, err2 := strconv.Atoi(f[1])
		if err1 != nil || err2 != nil {
			t.Fatalf("yara printed %q", line)
		}
		ps = append(ps, place{rule, f[2], off, n})
	}
	return ps
}

func compare(a, b place) int {
	if c := strings.Compare(a.rule+a.str, b.rule+b.str); c != 0 {
		return c
	}
	if a.offset != b.offset {
		return int(int64(a.offset) - int64(b.offset))
	}
	return a.length - b.length
}

// difference returns what is only in sorted a.
func difference(a, b []place) (only []place) {
	for _, p := range a {
		if _, ok := slices.BinarySearchFunc(b, p, compare); !ok {
			only = append(only, p)
		}
	}
	return only
}

// payload has its value put together in the guest, so that it is in no file. It
// waits by opening a FIFO that has no writer, not by a command: a child would
// have a copy of the value until it has begun its program.
const payload = `
A=VANTAGE-TEST; B=PAYLOAD
mkfifo /never
sh -c 'X=$0-$1-in-anonymous-memory; : > /started; read Y < /never' $A $B &
P=$!
until [ -e /started ]; do usleep 1000; done
echo $P
`

func TestAgainstYaraOnARealGuest(t *testing.T) {
	ctx := t.Context()
	g := labtest.Boot(t, lab.Config{Kernel: labtest.Kernel(t, lab.Bookworm), Memory: 256 << 20, KASLR: true})
	out, err := g.Run(ctx, payload)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	raw, rules := filepath.Join(dir, "mem.raw"), filepath.Join(dir, "truth.yar")
	if err := g.DumpRaw(ctx, raw); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(rules, []byte(truthRules), 0o600); err != nil {
		t.Fatal(err)
	}
	vm, err := image.New(image.Options{}).Open(ctx, raw)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	r, err := scanner.LoadRules(scanner.RuleOptions{}, scanner.FromPath(rules))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()

	t.Run("physical", func(t *testing.T) {
		want := yaraCommand(t, rules, raw)
		slices.SortFunc(want, compare)
		var got []place
		cut := map[string]bool{} // rules with more places in an extent than are listed
		sum, err := scanner.Scan(ctx, vm, r, []scanner.Target{scanner.PhysicalTarget{}}, scanner.Options{MaxStrings: 1 << 20, OnFinding: func(f scanner.Finding) error {
			cut[f.Rule] = cut[f.Rule] || f.StringsTruncated
			for _, s := range f.Strings {
				got = append(got, place{f.Rule, s.Name, uint64(s.PhysAddr), s.Length})
			}
			return nil
		}})
		if err != nil || !sum.Complete {
			t.Fatalf("%v, %+v", err, sum)
		}
		slices.SortFunc(got, compare)
		if only := difference(got, want); len(only) > 0 {
			t.Errorf("%d of %d places are not yara's: %+v", len(only), len(got), only[:min(len(only), 20)])
		}
		missed := slices.DeleteFunc(difference(want, got), func(p place) bool { return cut[p.rule] })
		if len(missed) > 0 {
			t.Errorf("%d of %d places were not found: %+v", len(missed), len(want), missed[:min(len(missed), 20)])
		}
		exact := 0
		for _, p := range want {
			if !cut[p.rule] {
				exact++
			}
		}
		t.Logf("yara has %d places, %d in rules of which all are listed; %d of %d pages shown to libyara", len(want), exact, sum.PagesRead-sum.PagesSkipped, sum.PagesTotal)
		if exact < 50 {
			t.Errorf("too few to tell")
		}
	})

	t.Run("processes", func(t *testing.T) {
		guest, err := linux.Open(ctx, vm, linux.Options{})
		if err != nil {
			t.Fatal(err)
		}
		list, err := guest.Processes(ctx, linux.ProcessOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var targets []scanner.Target
		for _, p := range list.Processes {
			if !p.HasMemory() {
				continue
			}
			space, err := guest.ProcessSpace(p)
			if err != nil {
				t.Fatal(err)
			}
			vmas, _, err := guest.VMAs(ctx, p)
			if err != nil {
				t.Fatal(err)
			}
			pt := scanner.ProcessTarget{PID: p.PID, Comm: p.Comm, Space: space}
			for _, v := range vmas {
				pt.Areas = append(pt.Areas, scanner.Area{Start: v.Start, End: v.End, Name: v.Path, Perms: v.Perms})
			}
			targets = append(targets, pt)
		}
		both, err := scanner.LoadRules(scanner.RuleOptions{}, scanner.FromPath(rules), scanner.FromFS(yara.Files(), yara.Name))
		if err != nil {
			t.Fatal(err)
		}
		defer both.Close()
		anon := 0
		sum, err := scanner.Scan(ctx, vm, both, targets, scanner.Options{OnFinding: func(f scanner.Finding) error {
			for _, s := range f.Strings {
				checkString(ctx, t, vm, targets, f, s)
			}
			switch {
			case f.Rule == "payload" && f.PID == pid:
				if f.Where == "[heap]" || f.Where == scanner.AnonymousArea {
					anon++
				}
			case f.Rule == "payload":
				t.Errorf("payload in pid %d (%s) too: %+v", f.PID, f.Comm, f)
			case strings.HasPrefix(f.Namespace, yara.Name) && f.Rule != "Vantage_Test_Payload":
				t.Errorf("a clean guest has %+v", f)
			}
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%+v", sum)
		if anon == 0 {
			t.Errorf("the payload of pid %d was not found", pid)
		}
		if sum.BytesFromCache == 0 {
			t.Error("no page of the shells was shared")
		}
		if !sum.Complete {
			t.Errorf("incomplete: %s", sum.IncompleteReason)
		}
	})
}

// checkString reads a match back, through the page tables and from physical
// memory.
func checkString(ctx context.Context, t *testing.T, vm hypervisor.VM, targets []scanner.Target, f scanner.Finding, s scanner.String) {
	t.Helper()
	for _, x := range targets {
		p := x.(scanner.ProcessTarget)
		if p.PID != f.PID {
			continue
		}
		n := min(s.Length, scanner.MaxData)
		for m, err := range p.Space.Mappings(ctx, *s.VirtAddr, *s.VirtAddr+1) {
			if err != nil || m.At(*s.VirtAddr) != s.PhysAddr {
				t.Errorf("pid %d: %v is at %v (%v), the finding says %v", f.PID, *s.VirtAddr, m.At(*s.VirtAddr), err, s.PhysAddr)
			}
		}
		n = min(n, int(hypervisor.PageSize-s.PhysAddr.Offset()))
		b := make([]byte, n)
		if err := hypervisor.ReadFull(vm, b, s.PhysAddr); err != nil || !strings.HasPrefix(s.Data, scanner.Escape(b)) {
			t.Errorf("pid %d: at %v is %q (%v), the finding says %q", f.PID, s.PhysAddr, b, err, s.Data)
		}
		return
	}
	t.Errorf("finding in no process: %d", f.PID)
}
