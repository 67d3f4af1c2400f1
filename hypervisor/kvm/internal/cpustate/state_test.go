package cpustate

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/guestmem"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func newVM(t *testing.T) (*core.VM, []uint32) {
	t.Helper()
	labtest.NeedKVM(t)
	sys, err := kvmapi.Open("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sys.Close() })
	msrs, err := sys.MSRIndexList()
	if err != nil {
		t.Fatal(err)
	}
	mem, err := guestmem.New([]hypervisor.Range{{Start: 0, Size: 1 << 20}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	vm, err := core.New(core.Config{System: sys, Memory: mem, VCPUs: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	cpuid, err := sys.SupportedCPUID()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vm.VCPUs() {
		if err := v.KVM().SetCPUID2(cpuid); err != nil {
			t.Fatal(err)
		}
	}
	return vm, msrs
}

// What is put back is what KVM then has: in the same VM, and in another one.
func TestRoundTrip(t *testing.T) {
	vm, msrs := newVM(t)
	pristine, err := Capture(vm, msrs)
	if err != nil {
		t.Fatal(err)
	}
	v := vm.VCPUs()[0]
	r, err := v.AllRegisters()
	if err != nil {
		t.Fatal(err)
	}
	r.RAX, r.R15, r.RIP, r.CR2 = 0x1122334455667788, 42, 0x1234, 0xdeadbeef
	r.STAR, r.SFMASK = 0x0023_0010_0000_0000, 0x47700
	if err := v.SetRegisters(&r); err != nil {
		t.Fatal(err)
	}
	changed, err := Capture(vm, msrs)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(changed)
	if err != nil {
		t.Fatal(err)
	}
	other, _ := newVM(t)
	for name, vm := range map[string]*core.VM{"same": vm, "other": other} {
		if err := pristine.Apply(vm); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if regs, err := vm.VCPUs()[0].Registers(); err != nil || regs.RAX == r.RAX || regs.RIP == r.RIP {
			t.Errorf("%s: reset leaves rax %#x, rip %v, %v", name, regs.RAX, regs.RIP, err)
		}
		s, err := Decode(b, 2)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Apply(vm); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := vm.VCPUs()[0].AllRegisters()
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%s: %+v\nwant %+v, %v", name, got, r, err)
		}
		again, err := Capture(vm, msrs)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(again.VCPUs[0].LAPIC, changed.VCPUs[0].LAPIC) || !reflect.DeepEqual(again.Chips, changed.Chips) || again.Clock < changed.Clock {
			t.Errorf("%s: controllers or clock differ", name)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	vm, msrs := newVM(t)
	s, err := Capture(vm, msrs)
	if err != nil {
		t.Fatal(err)
	}
	good, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*State){
		"version": func(s *State) { s.Version = 99 },
		"vCPUs":   func(s *State) { s.VCPUs = s.VCPUs[:1] },
		"chips":   func(s *State) { s.Chips = s.Chips[:1] },
		"xsave":   func(s *State) { s.VCPUs[1].XSAVE = nil },
		"lapic":   func(s *State) { s.VCPUs[0].LAPIC = s.VCPUs[0].LAPIC[:9] },
	} {
		var c State
		if err := json.Unmarshal(good, &c); err != nil {
			t.Fatal(err)
		}
		change(&c)
		b, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(b, 2); err == nil || !strings.Contains(err.Error(), "processor state") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Decode(good[:len(good)/2], 2); err == nil {
		t.Error("half a state is taken")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"version":1,"vcpus":[{}]}`))
	f.Add([]byte(`{"version":1,"vcpus":[{"xsave":"AA=="}],"chips":[{}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := Decode(b, 1); err == nil && len(s.VCPUs) != 1 {
			t.Error("another number of vCPUs is taken")
		}
	})
}
