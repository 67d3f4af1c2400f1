package paging

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/hypervisortest"
)

// TestAbsentPages puts pages behind entries that are not present, as an
// operating system does for mappings without access.
func TestAbsentPages(t *testing.T) {
	const (
		mark  = 1 << 8
		pml4  = 0x1000
		pdpt  = 0x2000
		pd    = 0x3000
		pt    = 0x4000
		page  = 0x5000
		large = 0x200000
	)
	fake := hypervisortest.NewFake(hypervisor.Range{Start: 0, Size: 8 << 20})
	put := func(gpa hypervisor.PhysAddr, e uint64) {
		fake.Store(gpa, binary.LittleEndian.AppendUint64(nil, e))
	}
	const table = bitPresent | bitWrite | bitUser
	put(pml4, pdpt|table)
	put(pdpt, pd|table)
	put(pd, pt|table)
	put(pd+8, large|mark|bitLarge|bitWrite) // at 2 MiB: a large page
	put(pd+16, large|mark|bitWrite)         // at 4 MiB: no page, so no table either
	put(pt, page|mark|bitWrite|bitUser)     // at 0: a page
	put(pt+8, 0x7ff000)                     // at 4 KiB: what the hook does not know
	fake.Store(page, []byte("behind a closed door"))

	hook := func(e uint64) (hypervisor.PhysAddr, bool) { return hypervisor.PhysAddr(e & addrMask), e&mark != 0 }
	vm := fake.VM(0)
	root := Root{Mode: Mode4Level, CR3: pml4, NX: true}
	as := New(vm, root, WithAbsentPages(hook))
	for _, c := range []struct {
		va   hypervisor.VirtAddr
		want hypervisor.PhysAddr
		size uint64
	}{{0, page, 4096}, {large, large, 2 << 20}} {
		m, err := as.Translate(c.va)
		if err != nil {
			t.Fatal(err)
		}
		if m.Phys != c.want || m.Size != c.size || m.Flags != NX|Absent {
			t.Errorf("%v: %v, %d bytes, flags %b; want %v, %d, %b", c.va, m.Phys, m.Size, m.Flags, c.want, c.size, NX|Absent)
		}
	}
	for _, va := range []hypervisor.VirtAddr{0x1000, 2 * large} {
		var e *NotMappedError
		if _, err := as.Translate(va); !errors.As(err, &e) || e.Kind != KindSwapped {
			t.Errorf("%v: %v, want an entry that is not present", va, err)
		}
	}
	b := make([]byte, 20)
	if n, err := as.ReadVirt(b, 0); err != nil || string(b[:n]) != "behind a closed door" {
		t.Errorf("read %q, %v", b[:n], err)
	}
	found := 0
	for m, err := range as.Mappings(t.Context(), 0, 1<<47) {
		if err == nil && m.Flags.Has(Absent) {
			found++
		}
	}
	if found != 2 {
		t.Errorf("%d absent pages in the listing, want 2", found)
	}
	if _, err := New(vm, root).Translate(0); err == nil {
		t.Error("without the option the page is there all the same")
	}
}

// TestDirtyBits reads entries that an operating system has marked in a place of
// its own.
func TestDirtyBits(t *testing.T) {
	const (
		mark  = 1 << 58
		table = bitPresent | bitWrite | bitUser
	)
	fake := hypervisortest.NewFake(hypervisor.Range{Start: 0, Size: 1 << 20})
	for gpa, e := range map[hypervisor.PhysAddr]uint64{
		0x1000: 0x2000 | table, 0x2000: 0x3000 | table, 0x3000: 0x4000 | table | mark,
		0x4000: 0x5000 | table, 0x4008: 0x5000 | table | mark, 0x4010: 0x5000 | table | bitDirty,
	} {
		fake.Store(gpa, binary.LittleEndian.AppendUint64(nil, e))
	}
	root := Root{Mode: Mode4Level, CR3: 0x1000, NX: true}
	for _, marks := range []uint64{0, mark} {
		as := New(fake.VM(0), root, WithDirtyBits(marks))
		for page, want := range []bool{false, marks != 0, true} {
			m, err := as.Translate(hypervisor.VirtAddr(page * hypervisor.PageSize))
			if err != nil || m.Flags.Has(Dirty) != want {
				t.Errorf("bits %#x, page %d: flags %b, want dirty %v: %v", marks, page, m.Flags, want, err)
			}
		}
	}
}
