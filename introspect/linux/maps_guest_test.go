package linux

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// mapTruth is an entry of /proc/PID/smaps.
type mapTruth struct {
	pid    int
	header string // as maps prints it, but for the spaces in front of the path
	values map[string]uint64
	flags  []string
}

// parseSmaps returns the entries of the lines that begin with MAP.
func parseSmaps(t *testing.T, lines []string) []*mapTruth {
	t.Helper()
	var out []*mapTruth
	for _, line := range lines {
		rest, ok := strings.CutPrefix(line, "MAP ")
		if !ok {
			continue
		}
		number, rest, _ := strings.Cut(rest, " ")
		pid, err := strconv.Atoi(number)
		if err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		name, value, _ := strings.Cut(rest, ":")
		if addrs, _, _ := strings.Cut(rest, " "); strings.Contains(addrs, "-") {
			f := append(strings.SplitN(strings.Join(strings.Fields(rest), " "), " ", 6), "")
			out = append(out, &mapTruth{pid: pid, header: strings.Join(f[:6], " "), values: map[string]uint64{}})
			continue
		}
		if len(out) == 0 {
			t.Fatalf("line %q stands first", line)
		}
		m := out[len(out)-1]
		words := strings.Fields(value)
		switch {
		case name == "VmFlags":
			m.flags = slices.DeleteFunc(words, func(s string) bool { return s == "??" })
		case len(words) == 2 && words[1] == "kB":
			if m.values[name], err = strconv.ParseUint(words[0], 10, 64); err != nil {
				t.Fatalf("line %q: %v", line, err)
			}
		}
	}
	return out
}

func seenHeader(a *Area) string {
	return fmt.Sprintf("%08x-%08x %s %08x %02x:%02x %d %s", uint64(a.Start), uint64(a.End), a.Perms, a.Offset,
		a.Dev.Major(), a.Dev.Minor(), a.Inode, a.Path)
}

// What processes have mapped is what /proc/PID/smaps says of it, field by field.
func compareMaps(t *testing.T, guest *Guest, lines []string) {
	l, err := guest.Processes(t.Context(), ProcessOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[int][]*mapTruth{}
	for _, m := range parseSmaps(t, lines) {
		if !strings.Contains(m.header, "[vsyscall]") {
			want[m.pid] = append(want[m.pid], m)
		}
	}
	all := map[hypervisor.VirtAddr]*Area{} // of the mapper, by address
	seen := map[string]uint64{}
	deleted := 0
	for _, p := range l.Processes {
		if len(want[p.PID]) == 0 {
			continue
		}
		got, err := guest.Maps(t.Context(), p, MapOptions{})
		if err != nil || !got.Coverage.Complete() {
			t.Errorf("mappings of %d: %v %v", p.PID, err, got.Coverage.Problems())
			continue
		}
		if len(got.Areas) != len(want[p.PID]) {
			t.Errorf("process %d has %d areas, want %d", p.PID, len(got.Areas), len(want[p.PID]))
			continue
		}
		for i := range got.Areas {
			a := &got.Areas[i]
			compareArea(t, a, want[p.PID][i], seen)
			if p.Comm == "mapper" {
				all[a.Start] = a
			}
			if a.Deleted && a.Perms == "r-xp" {
				deleted++
			}
		}
	}
	if deleted < 2 {
		t.Errorf("%d programs run from deleted files, want 2 or more", deleted)
	}
	if len(want) < 5 {
		t.Errorf("only %d processes compared", len(want))
	}
	for _, k := range []string{"Rss", "Swap", "Dirty", "Anonymous", "AnonHugePages", "Hugetlb"} {
		if seen[k] == 0 {
			t.Errorf("nothing that counts for %s was compared", k)
		}
	}
	compareCopies(t, all, lines)
	t.Logf("kB in all: %v", seen)
}

func compareArea(t *testing.T, a *Area, w *mapTruth, seen map[string]uint64) {
	t.Helper()
	if got := seenHeader(a); got != w.header {
		t.Errorf("area of %d\n%s, want\n%s", a.PID, got, w.header)
		return
	}
	if !slices.Equal(a.Flags, w.flags) {
		t.Errorf("area %s: flags %v, want %v", w.header, a.Flags, w.flags)
	}
	w.values["Dirty"] = w.values["Private_Dirty"] + w.values["Shared_Dirty"]
	w.values["Hugetlb"] = w.values["Private_Hugetlb"] + w.values["Shared_Hugetlb"]
	const kB = hypervisor.PageSize >> 10
	got := map[string]uint64{"Rss": a.Resident * kB, "Swap": a.Swapped * kB, "Dirty": a.Dirty * kB, "Anonymous": a.Anonymous * kB}
	if w.values["Hugetlb"] > 0 {
		got["Rss"] -= w.values["Hugetlb"]
	}
	for _, k := range slices.Sorted(maps.Keys(got)) {
		if got[k] != w.values[k] {
			t.Errorf("area %s: %s %d kB, want %d", w.header, k, got[k], w.values[k])
		}
	}
	for k, v := range w.values {
		seen[k] += v
	}
}

// compareCopies compares what differs from the file with what the program wrote.
func compareCopies(t *testing.T, all map[hypervisor.VirtAddr]*Area, lines []string) {
	n := 0
	for _, line := range lines {
		var pid, modified int
		var start uint64
		if _, err := fmt.Sscanf(line, "COPY %d %x %d", &pid, &start, &modified); err != nil {
			continue
		}
		a := all[hypervisor.VirtAddr(start)]
		if a == nil {
			t.Errorf("no area at %#x", start)
			continue
		}
		exec := uint64(0)
		if a.Perms[2] == 'x' {
			exec = uint64(modified)
		}
		if a.Modified != uint64(modified) || a.ModifiedExec != exec {
			t.Errorf("area %s: %d modified, %d of code, want %d and %d", seenHeader(a), a.Modified, a.ModifiedExec, modified, exec)
		}
		n++
	}
	if n < 6 {
		t.Errorf("only %d areas with copies compared", n)
	}
}
