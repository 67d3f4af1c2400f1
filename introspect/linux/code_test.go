package linux

import (
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// An address belongs to the code that it lies in, and to none between two.
func TestCodeOwner(t *testing.T) {
	const base = hypervisor.VirtAddr(0xffff_ffff_a000_0000)
	m := &codeMap{g: newFake(t, 1).guest, symbols: map[hypervisor.VirtAddr]*moduleSymbols{}}
	cov := &introspect.Coverage{}
	m.add(cov, "code", base, base+0x3000, base+0x4000, codeRange{kind: CodeBPF, owner: "bpf_prog_1"})
	m.add(cov, "code", base, base+0x1000, base+0x2000, codeRange{kind: CodeModule, owner: "one"})
	m.add(cov, "code", base, base+0x1800, base+0x2800, codeRange{kind: CodeModule, owner: "two"}) // overlaps the first
	m.add(cov, "code", base, base+0x1100, base+0x1200, codeRange{kind: CodeModule, owner: "in"})  // lies in it
	if !cov.Complete() {
		t.Fatal(cov.Problems())
	}
	for _, lie := range []struct{ start, end hypervisor.VirtAddr }{
		{base + 2, base + 1}, {base, base + maxCodeSize + 1}, {0x1000, 0x2000}, // backwards, too large, of a process
	} {
		before := cov.Total()
		if m.add(cov, "code", base, lie.start, lie.end, codeRange{kind: CodeFtrace}); cov.Total() != before+1 {
			t.Errorf("%v is believed", lie)
		}
	}
	m.sort()
	for _, c := range []struct {
		at   hypervisor.VirtAddr
		want string
		kind CodeKind
	}{
		{base + 0xfff, "0xffffffffa0000fff", CodeUnknown},
		{base + 0x1000, "one", CodeModule},
		{base + 0x1fff, "one+0xfff", CodeModule},
		{base + 0x1150, "one+0x150", CodeModule},
		{base + 0x2010, "two+0x10", CodeModule},
		{base + 0x2800, "0xffffffffa0002800", CodeUnknown},
		{base + 0x3004, "bpf_prog_1+0x4 [bpf]", CodeBPF},
		{base + 0x4000, "0xffffffffa0004000", CodeUnknown},
		{0x1234, "0x1234", CodeUnknown},
	} {
		got := m.owner(c.at)
		if got.String() != c.want || got.Kind != c.kind || got.Unknown() != (c.kind == CodeUnknown) {
			t.Errorf("%v is %+v (%v), want %s", c.at, got, got, c.want)
		}
	}
}
