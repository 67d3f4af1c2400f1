package monitor

import (
	"errors"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

const allGroups = hypervisor.GroupGeneral | hypervisor.GroupSegments | hypervisor.GroupControl

func TestParseRegisters64(t *testing.T) {
	text := testdata(t, "registers-linux64.txt")
	rs, err := ParseRegisters(text)
	if err != nil || len(rs) != 1 {
		t.Fatalf("%d vCPUs, %v", len(rs), err)
	}
	r := rs[0]
	if r.Valid != allGroups {
		t.Errorf("valid %b", r.Valid)
	}
	// Each value as the text has it.
	for _, tt := range []struct {
		key string
		got uint64
	}{
		{"RSI", r.RSI}, {"RDI", r.RDI}, {"RBP", r.RBP}, {"RSP", r.RSP}, {"R8 ", r.R8}, {"R9 ", r.R9}, {"R15", r.R15},
		{"RIP", uint64(r.RIP)}, {"RFL", r.RFLAGS}, {"CR0", r.CR0}, {"CR2", r.CR2}, {"CR3", r.CR3}, {"CR4", r.CR4}, {"EFER", r.EFER},
	} {
		if !strings.Contains(text, tt.key+"="+hex16(tt.got)) && !strings.Contains(text, tt.key+"="+hex16(tt.got)[8:]) {
			t.Errorf("%s = %#x is not in the text", tt.key, tt.got)
		}
	}
	if r.CS.Selector != 0x10 || r.CS.Attributes != 0xa09b || r.CS.Limit != 0xffffffff || r.CS.DPL() != 0 {
		t.Errorf("CS = %+v", r.CS)
	}
	if r.GDT.Limit != 0x7f || r.IDT.Limit != 0xfff || r.GDT.Base>>40 != 0xfffffe || r.TR.Selector != 0x40 || r.TR.Limit != 0x4087 {
		t.Errorf("GDT %+v, IDT %+v, TR %+v", r.GDT, r.IDT, r.TR)
	}
	if r.GS.Base>>47 != 0x1ffff {
		t.Errorf("GS = %+v", r.GS)
	}
}

func hex16(v uint64) string {
	const digits = "0123456789abcdef"
	var b [16]byte
	for i := range b {
		b[i] = digits[v>>(60-4*i)&15]
	}
	return string(b[:])
}

func TestParseRegisters16(t *testing.T) {
	rs, err := ParseRegisters(testdata(t, "registers-bios-2cpu.txt"))
	if err != nil || len(rs) != 2 {
		t.Fatalf("%d vCPUs, %v", len(rs), err)
	}
	if rs[0].VCPU != 0 || rs[1].VCPU != 1 || rs[0].Valid != allGroups || rs[1].Valid != allGroups {
		t.Errorf("vCPUs %d %d, valid %b %b", rs[0].VCPU, rs[1].VCPU, rs[0].Valid, rs[1].Valid)
	}
	r := rs[0]
	if r.RCX != 0xb79d || r.RIP != 0xb7b9 || r.RFLAGS != 0x246 || r.CR0 != 0x10 || r.IDT.Limit != 0x3ff {
		t.Errorf("%+v", r)
	}
	if want := (hypervisor.Segment{Selector: 0xf000, Base: 0xf0000, Limit: 0xffff, Attributes: 0x9b}); r.CS != want {
		t.Errorf("CS = %+v, want %+v", r.CS, want)
	}
}

func TestParseRegistersBad(t *testing.T) {
	if _, err := ParseRegisters("no cpus\n"); !errors.Is(err, ErrNoRegisters) {
		t.Errorf("err = %v", err)
	}
	for _, bad := range []string{"CPU#x\n", "CPU#-1\n", "CPU#99999999\n"} {
		if _, err := ParseRegisters(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	// What is cut off is not called valid.
	text := testdata(t, "registers-linux64.txt")
	rs, err := ParseRegisters(text[:strings.Index(text, "CR3=")])
	if err != nil || rs[0].Valid != hypervisor.GroupGeneral|hypervisor.GroupSegments {
		t.Errorf("cut off: %v, valid %b", err, rs[0].Valid)
	}
}
