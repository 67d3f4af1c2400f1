package hypervisortest

import (
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Bits of the control registers (Intel SDM 3A, 2.5).
const (
	cr0PE   = 1 << 0
	cr0PG   = 1 << 31
	cr4PAE  = 1 << 5
	cr4LA57 = 1 << 12
	eferLME = 1 << 8
	eferLMA = 1 << 10
)

func testRegisters(t *testing.T, _ Config, vm hypervisor.VM) {
	r, err := hypervisor.As[hypervisor.RegisterReader](vm)
	if err != nil {
		t.Log(err)
		return
	}
	regs, err := r.Registers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(regs) == 0 {
		t.Fatal("no vCPU")
	}
	if n := vm.Info().VCPUs; n != 0 && n != len(regs) {
		t.Errorf("registers of %d vCPUs, Info says %d", len(regs), n)
	}
	for i, c := range regs {
		if c.VCPU != i {
			t.Errorf("registers %d are of vCPU %d", i, c.VCPU)
		}
		if c.Valid == 0 {
			t.Errorf("vCPU %d: nothing is valid", i)
		}
		checkRegisters(t, vm, c)
	}
}

// checkRegisters checks what holds for every x86 CPU that runs.
func checkRegisters(t *testing.T, vm hypervisor.VM, r hypervisor.Registers) {
	t.Helper()
	check := func(ok bool, what string) {
		if !ok {
			t.Errorf("vCPU %d: %s: %+v", r.VCPU, what, r)
		}
	}
	if r.Valid.Has(hypervisor.GroupGeneral) {
		check(r.RFLAGS&2 != 0, "bit 1 of RFLAGS is always set")
	}
	if !r.Valid.Has(hypervisor.GroupControl) {
		return
	}
	long := r.EFER&eferLMA != 0
	if r.CR0&cr0PG != 0 {
		check(r.CR0&cr0PE != 0, "paging without protection")
		_, ok := hypervisor.FindRange(vm.Ranges(), hypervisor.PhysAddr(r.CR3&^0xfff&(1<<52-1)))
		check(ok, "CR3 is not in RAM")
	}
	if long {
		check(r.EFER&eferLME != 0 && r.CR0&cr0PG != 0 && r.CR4&cr4PAE != 0, "long mode without LME, PG or PAE")
		if r.Valid.Has(hypervisor.GroupGeneral) {
			bits := 48
			if r.CR4&cr4LA57 != 0 {
				bits = 57
			}
			top := int64(r.RIP) >> (bits - 1)
			check(top == 0 || top == -1, "RIP is not canonical")
		}
	}
	if long && r.Valid.Has(hypervisor.GroupSegments) {
		check(r.CS.Attributes&(1<<7) != 0, "CS is not present")
		check(r.GDT.Limit != 0 && r.IDT.Limit != 0, "no GDT or IDT")
	}
}

func testSetRegisters(t *testing.T, _ Config, vm hypervisor.VM) {
	w, err := hypervisor.As[hypervisor.RegisterWriter](vm)
	if err != nil {
		t.Log(err)
		return
	}
	if !still(t, vm) {
		t.Log("a VM that cannot be paused: its registers change under the test")
		return
	}
	defer goOn(t, vm)
	r, err := hypervisor.As[hypervisor.RegisterReader](vm)
	if err != nil {
		t.Fatal(err)
	}
	before, err := r.Registers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	changed := before[len(before)-1]
	changed.Valid = hypervisor.GroupGeneral
	changed.RAX, changed.R15 = ^changed.RAX, changed.R15+1
	for _, want := range []hypervisor.Registers{changed, before[len(before)-1]} {
		want.Valid = hypervisor.GroupGeneral
		if err := w.SetRegisters(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		now, err := r.Registers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := now[len(now)-1]
		if got.RAX != want.RAX || got.R15 != want.R15 || got.RIP != want.RIP || got.CR3 != before[len(now)-1].CR3 {
			t.Errorf("registers after SetRegisters:\n%+v\nwant\n%+v", got, want)
		}
	}
	changed.VCPU = len(before)
	if err := w.SetRegisters(t.Context(), changed); err == nil {
		t.Errorf("registers of vCPU %d of %d were set", changed.VCPU, len(before))
	}
}
