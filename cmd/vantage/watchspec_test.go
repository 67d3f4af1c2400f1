package main

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/hypervisortest"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
	"github.com/vantage-vmi/vantage/introspect/paging"
	"github.com/vantage-vmi/vantage/node"
)

func TestWatchSpecs(t *testing.T) {
	const r, w, x = hypervisor.AccessRead, hypervisor.AccessWrite, hypervisor.AccessExecute
	write := func(s string) (watchSpec, error) { return parsePage(s, w, 8, hypervisor.MechanismUserfault) }
	exec := func(s string) (watchSpec, error) { return parsePage(s, x, 1, hypervisor.MechanismAuto) }
	page := func(size uint64) hypervisor.Trap {
		return hypervisor.Trap{Kind: hypervisor.TrapPage, Access: w, Size: size, Mechanism: hypervisor.MechanismUserfault}
	}
	hw := func(a hypervisor.Access, size uint64) hypervisor.Trap {
		return hypervisor.Trap{Kind: hypervisor.TrapHardware, Access: a, Size: size, VCPU: hypervisor.AllVCPUs}
	}
	for _, c := range []struct {
		parse func(string) (watchSpec, error)
		text  string
		place watchPlace
		trap  hypervisor.Trap
		err   string // a part of it; empty: none
	}{
		{parse: write, text: "0x1000", place: watchPlace{addr: 0x1000}, trap: page(8)},
		{parse: write, text: "0X1000:0x10", place: watchPlace{addr: 0x1000}, trap: page(16)},
		{parse: write, text: "virt:0xffffffff82000000:4096", place: watchPlace{kind: placeVirt, addr: 0xffff_ffff_8200_0000}, trap: page(4096)},
		{parse: write, text: "sym:jiffies_64", place: watchPlace{kind: placeSymbol, symbol: "jiffies_64"}, trap: page(8)},
		{parse: write, text: "sym:f.constprop.0+0x10:4", place: watchPlace{kind: placeSymbol, symbol: "f.constprop.0", offset: 16}, trap: page(4)},
		{parse: write, text: "sym:f+8", place: watchPlace{kind: placeSymbol, symbol: "f", offset: 8}, trap: page(8)},
		{parse: write, text: "0xffffffffffffffff:1", place: watchPlace{addr: 1<<64 - 1}, trap: page(1)},
		{parse: write, text: "0xffffffffffffffff:2", err: "more than there are addresses"},
		{parse: write, text: "1000", err: "want an address: 0x…"},
		{parse: write, text: "", err: "want an address"},
		{parse: write, text: "0x", err: "want an address"},
		{parse: write, text: "0x10000000000000000", err: "want an address"},
		{parse: write, text: "virt:sym:x", err: "want an address"},
		{parse: write, text: "0x1000:0", err: "want a size in bytes"},
		{parse: write, text: "0x1000:", err: "want a size in bytes"},
		{parse: write, text: "0x1000:-1", err: "want a size in bytes"},
		{parse: write, text: "sym:", err: "want a symbol"},
		{parse: write, text: "sym:+1", err: "want a symbol"},
		{parse: write, text: "sym:f+", err: "bytes behind the symbol"},
		{parse: exec, text: "0x1000", place: watchPlace{addr: 0x1000}, trap: hypervisor.Trap{Kind: hypervisor.TrapPage, Access: x, Size: 1}},

		{parse: parseBreak, text: "sym:do_exit", place: watchPlace{kind: placeSymbol, symbol: "do_exit"}, trap: hypervisor.Trap{Kind: hypervisor.TrapBreakpoint, Access: x}},
		{parse: parseBreak, text: "sym:do_exit:1", err: "has no :SIZE"},

		{parse: parseHardware, text: "x:0x401000", place: watchPlace{kind: placeVirt, addr: 0x401000}, trap: hw(x, 1)},
		{parse: parseHardware, text: "w:virt:0xffffffff82000000", place: watchPlace{kind: placeVirt, addr: 0xffff_ffff_8200_0000}, trap: hw(w, 8)},
		{parse: parseHardware, text: "rw:sym:x+4:4", place: watchPlace{kind: placeSymbol, symbol: "x", offset: 4}, trap: hw(r|w, 4)},
		{parse: parseHardware, text: "r:0x1000", err: "use rw, or --read"},
		{parse: parseHardware, text: "0x1000", err: "want x, w or rw"},
		{parse: parseHardware, text: "x:0x1000:2", err: "leave :SIZE out"},
		{parse: parseHardware, text: "w:0x1000:16", err: "1, 2, 4 or 8"},
		{parse: parseHardware, text: "w:0x1004", err: "smaller :SIZE"},

		{parse: parseMSR, text: "w:LSTAR", trap: hypervisor.Trap{Kind: hypervisor.TrapMSR, Access: w, MSR: 0xc000_0082}},
		{parse: parseMSR, text: "rw:kernel_gs_base", trap: hypervisor.Trap{Kind: hypervisor.TrapMSR, Access: r | w, MSR: 0xc000_0102}},
		{parse: parseMSR, text: "r:0x174", trap: hypervisor.Trap{Kind: hypervisor.TrapMSR, Access: r, MSR: 0x174}},
		{parse: parseMSR, text: "r:174", err: "0x174"},
		{parse: parseMSR, text: "r:0x100000000", err: "0x174"},
		{parse: parseMSR, text: "w:LSTAT", err: "LSTAR"},
		{parse: parseMSR, text: "LSTAR", err: "want r, w or rw"},
		{parse: parseMSR, text: "x:LSTAR", err: "want r, w or rw"},

		{parse: parsePort, text: "rw:0x3f8:8", trap: hypervisor.Trap{Kind: hypervisor.TrapPort, Access: r | w, Port: 0x3f8, Count: 8}},
		{parse: parsePort, text: "w:0xffff", trap: hypervisor.Trap{Kind: hypervisor.TrapPort, Access: w, Port: 0xffff, Count: 1}},
		{parse: parsePort, text: "r:0x0:65536", trap: hypervisor.Trap{Kind: hypervisor.TrapPort, Access: r, Count: 65536}},
		{parse: parsePort, text: "w:0xffff:2", err: "from 1 to 1"},
		{parse: parsePort, text: "w:0x80:0", err: "number of ports"},
		{parse: parsePort, text: "w:0x80:0xffffffffffffffff", err: "number of ports"},
		{parse: parsePort, text: "w:0x10000", err: "0xffff"},
		{parse: parsePort, text: "w:80", err: "0xffff"},
		{parse: parsePort, text: "0x80", err: "want r, w or rw"},
	} {
		got, err := c.parse(c.text)
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q: error %v, want one with %q", c.text, err, c.err)
			}
		case err != nil:
			t.Errorf("%q: %v", c.text, err)
		case got.place != c.place || !reflect.DeepEqual(got.trap, c.trap):
			t.Errorf("%q: %+v, want %+v and %+v", c.text, got, c.place, c.trap)
		}
	}
}

// No text makes a parser panic, and what it takes is something that can be set.
func FuzzWatchSpecs(f *testing.F) {
	for _, s := range []string{"0x1000:8", "virt:0xffffffff82000000", "sym:a+0x1:2", "rw:0x3f8:8", "w:LSTAR", "x:sym:f", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		page := func(s string) (watchSpec, error) { return parsePage(s, hypervisor.AccessWrite, 8, "") }
		for i, parse := range []func(string) (watchSpec, error){page, parseBreak, parseHardware, parseMSR, parsePort} {
			s, err := parse(text)
			if err != nil {
				continue
			}
			if s.trap.Access == 0 || i == 0 && s.trap.Size == 0 || uint64(s.trap.Port)+uint64(s.trap.Count) > 1<<16 {
				t.Errorf("%q: %+v", text, s.trap)
			}
		}
	})
}

// kernelVirt is where pagedFake maps physical pages 5, 6, 9 and 7, one behind the
// other.
const kernelVirt = hypervisor.VirtAddr(0xffff_ffff_8000_0000)

// pagedFake is a VM whose first vCPU does not translate, and whose second one has
// page tables.
func pagedFake() *hypervisortest.Fake {
	f := hypervisortest.NewFake(hypervisor.Range{Start: 0, Size: 1 << 20})
	entry := func(table, index, to uint64) {
		const presentWrite = 3
		to |= presentWrite
		var b [8]byte
		for i := range b {
			b[i] = byte(to >> (8 * i))
		}
		f.Store(hypervisor.PhysAddr(table+8*index), b[:])
	}
	entry(0x1000, 511, 0x2000)
	entry(0x2000, 510, 0x3000)
	entry(0x3000, 0, 0x4000)
	for i, page := range []uint64{5, 6, 9, 7} {
		entry(0x4000, uint64(i), page<<12)
	}
	f.SetVCPUs(
		hypervisor.Registers{Valid: hypervisor.GroupControl},
		hypervisor.Registers{VCPU: 1, Valid: hypervisor.GroupControl, CR0: 1 << 31, CR3: 0x1000, CR4: 1 << 5, EFER: 1<<10 | 1<<8},
	)
	f.SetInfo(func(i *hypervisor.Info) { i.Name, i.URI, i.Driver = "web", "kvm:web", "kvm" })
	f.SetLive(true)
	return f
}

func TestWatchPlaces(t *testing.T) {
	f := pagedFake()
	p := newPlaces(t.Context(), node.New(node.Options{}), f)
	parsed := func(text string) watchSpec {
		t.Helper()
		s, err := parsePage(text, hypervisor.AccessWrite, 8, "")
		if err != nil {
			t.Fatal(err)
		}
		s.flag, s.text = "write", text
		return s
	}
	check := func(text string, want ...hypervisor.Range) {
		t.Helper()
		s := parsed(text)
		ts, err := p.traps(t.Context(), &s)
		var got []hypervisor.Range
		for _, x := range ts {
			got = append(got, hypervisor.Range{Start: x.Addr, Size: x.Size})
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v, want %v", text, got, err, want)
		}
	}
	fails := func(text, want string, is error) {
		t.Helper()
		s := parsed(text)
		_, err := p.traps(t.Context(), &s)
		if err == nil || !strings.Contains(err.Error(), want) || is != nil && !errors.Is(err, is) {
			t.Errorf("%s: error %v, want one with %q that is %v", text, err, want, is)
		}
	}
	check("0x5ff8", hypervisor.Range{Start: 0x5ff8, Size: 8})
	check("virt:0xffffffff80000ff8", hypervisor.Range{Start: 0x5ff8, Size: 8})
	check("virt:0xffffffff80000ff8:16", hypervisor.Range{Start: 0x5ff8, Size: 16}) // neighbours there too
	check("virt:0xffffffff80001ffc:8196", hypervisor.Range{Start: 0x6ffc, Size: 4}, hypervisor.Range{Start: 0x9000, Size: 4096},
		hypervisor.Range{Start: 0x7000, Size: 4096})
	fails("virt:0x401000", "each process has its own", nil)
	fails("virt:0xffffffff80004000", "not mapped", profile.ErrNoKernel)
	fails("sym:jiffies_64", "look up symbol", profile.ErrNoKernel)

	// With a kernel.
	k := &guestKernel{
		space: paging.New(f, paging.Root{Mode: paging.Mode4Level, CR3: 0x1000}),
		symbol: func(name string) (hypervisor.VirtAddr, error) {
			if name == "there" {
				return kernelVirt + 0x3010, nil
			}
			return 0, profile.ErrNoSymbol
		},
	}
	p.kernel = func() (*guestKernel, error) { p.found = k; return k, nil }
	check("sym:there", hypervisor.Range{Start: 0x7010, Size: 8})
	check("sym:there+0x8:2", hypervisor.Range{Start: 0x7018, Size: 2})
	fails("sym:there+0xffffffffffffffff", "behind the last address", nil)
	fails("sym:nowhere", "no such symbol", profile.ErrNoSymbol)
	fails("virt:0xffffffff80004000", "translate", paging.ErrNotMapped)
	for text, want := range map[string]string{"w:sym:there": "", "w:sym:there+4": "smaller :SIZE", "x:sym:there+1": ""} {
		s, err := parseHardware(text)
		if err != nil {
			t.Fatal(err)
		}
		ts, err := p.traps(t.Context(), &s)
		if want == "" && (err != nil || len(ts) != 1 || ts[0].Virt != kernelVirt+0x3010+hypervisor.VirtAddr(s.place.offset)) {
			t.Errorf("%s: %+v, %v", text, ts, err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", text, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := parsed("virt:0xffffffff80000000")
	if _, err := p.traps(ctx, &s); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
