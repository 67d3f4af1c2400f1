// Package cpustate takes the whole state of a VM's processors, interrupt
// controllers, timer and clock out of KVM, and puts it back: to save and restore
// a VM, and to reset it (the state of a VM that has not run yet is that of a
// machine that was just switched on).
//
// It must not import anything of Vantage but core, kvmapi and package hypervisor.
package cpustate

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
)

// version of the encoding; one that is newer is refused.
const version = 1

// State is the state of a VM outside its memory and its devices. As JSON it is
// what a saved VM holds.
type State struct {
	Version int    `json:"version"`
	VCPUs   []VCPU `json:"vcpus"`
	// Chips are the two PICs and the I/O APIC; none for a VM without them.
	Chips []kvmapi.IRQChip `json:"chips,omitempty"`
	PIT   []byte           `json:"pit,omitempty"` // struct kvm_pit_state2
	Clock uint64           `json:"clock"`         // kvmclock, nanoseconds
}

// VCPU is one vCPU's state.
type VCPU struct {
	Regs      kvmapi.Regs       `json:"regs"`
	Sregs     kvmapi.Sregs      `json:"sregs"`
	XSAVE     []byte            `json:"xsave"`
	XCRs      kvmapi.XCRs       `json:"xcrs"`
	DebugRegs kvmapi.DebugRegs  `json:"debug_regs"`
	LAPIC     []byte            `json:"lapic,omitempty"`
	MSRs      []kvmapi.MSREntry `json:"msrs"`
	Events    kvmapi.VCPUEvents `json:"events"`
	MPState   uint32            `json:"mp_state"`
	TSCKHz    int               `json:"tsc_khz"`
}

// MSRs with an order of their own (arch/x86/include/asm/msr-index.h).
const msrTSCDeadline = 0x6e0

// Capture takes the state of a VM whose vCPUs stand, with their last exits
// finished (core.VM.Settle). msrs is what the host's KVM has of them.
func Capture(vm *core.VM, msrs []uint32) (*State, error) {
	s := &State{Version: version}
	for _, v := range vm.VCPUs() {
		c, err := captureVCPU(vm, v.KVM(), msrs)
		if err != nil {
			return nil, fmt.Errorf("state of vCPU %d: %w", v.Index(), err)
		}
		s.VCPUs = append(s.VCPUs, c)
	}
	if vm.HasIRQChip() {
		for id := range uint32(3) {
			c, err := vm.KVM().IRQChip(id)
			if err != nil {
				return nil, err
			}
			s.Chips = append(s.Chips, c)
		}
		pit, err := vm.KVM().PIT2()
		if err != nil {
			return nil, err
		}
		s.PIT = pit.Data[:]
	}
	clock, err := vm.KVM().Clock()
	s.Clock = clock.Clock
	return s, err
}

func captureVCPU(vm *core.VM, c *kvmapi.VCPU, msrs []uint32) (s VCPU, err error) {
	s.XSAVE = make([]byte, max(4096, vm.KVM().Check(kvmapi.CapXSAVE2)))
	get := func(f func() error) {
		if err == nil {
			err = f()
		}
	}
	// The state first: KVM_GET_MP_STATE takes in a pending INIT or SIPI.
	get(func() (err error) {
		if vm.HasIRQChip() {
			s.MPState, err = c.MPState()
		}
		return err
	})
	get(func() (err error) { s.Regs, err = c.Regs(); return err })
	get(func() (err error) { s.Sregs, err = c.Sregs(); return err })
	get(func() error { return c.XSAVE(s.XSAVE) })
	get(func() (err error) { s.XCRs, err = c.XCRs(); return err })
	get(func() (err error) { s.DebugRegs, err = c.DebugRegs(); return err })
	if vm.HasIRQChip() {
		get(func() error {
			l, err := c.LAPIC()
			s.LAPIC = l.Regs[:]
			return err
		})
	}
	get(func() (err error) { s.MSRs, err = readMSRs(c, msrs); return err })
	get(func() (err error) { s.Events, err = c.VCPUEvents(); return err })
	get(func() error {
		// Not every host can say; the guest's own measure holds then.
		s.TSCKHz, _ = c.TSCKHz()
		return nil
	})
	return s, err
}

// readMSRs reads those of the list that this vCPU has: KVM lists some that the
// guest's CPUID does not show.
func readMSRs(c *kvmapi.VCPU, list []uint32) ([]kvmapi.MSREntry, error) {
	var out []kvmapi.MSREntry
	for len(list) > 0 {
		batch := make([]kvmapi.MSREntry, len(list))
		for i, index := range list {
			batch[i].Index = index
		}
		n, err := c.MSRs(batch)
		if err != nil {
			return nil, err
		}
		out = append(out, batch[:n]...)
		list = list[min(n+1, len(list)):]
	}
	return out, nil
}

// Decode reads a state that was saved, for a VM with the given number of vCPUs.
func Decode(b []byte, vcpus int) (*State, error) {
	var s State
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("processor state: %w", err)
	}
	switch {
	case s.Version != version:
		return nil, fmt.Errorf("processor state: version %d, want %d: restore it with the release that saved it", s.Version, version)
	case len(s.VCPUs) != vcpus:
		return nil, fmt.Errorf("processor state: of %d vCPUs, the VM has %d", len(s.VCPUs), vcpus)
	case len(s.Chips) != 0 && (len(s.Chips) != 3 || len(s.PIT) != len(kvmapi.PITState2{}.Data)):
		return nil, fmt.Errorf("processor state: %d interrupt controllers and a timer of %d bytes", len(s.Chips), len(s.PIT))
	}
	for i, c := range s.VCPUs {
		if len(c.XSAVE) < 4096 || len(c.XSAVE) > 1<<20 || len(c.LAPIC) != 0 && len(c.LAPIC) != len(kvmapi.LAPICState{}.Regs) || len(c.MSRs) > 1024 {
			return nil, fmt.Errorf("processor state: vCPU %d: a part has a wrong size", i)
		}
	}
	return &s, nil
}

// Apply gives a VM whose vCPUs stand the state s.
func (s *State) Apply(vm *core.VM) error {
	if len(s.VCPUs) != len(vm.VCPUs()) || (len(s.Chips) != 0) != vm.HasIRQChip() {
		return errors.New("processor state: of another kind of VM")
	}
	// The clock before the MSRs that let the guest read it.
	if err := vm.KVM().SetClock(kvmapi.ClockData{Clock: s.Clock}); err != nil {
		return err
	}
	for _, c := range s.Chips {
		if err := vm.KVM().SetIRQChip(c); err != nil {
			return err
		}
	}
	if len(s.PIT) > 0 {
		var pit kvmapi.PITState2
		copy(pit.Data[:], s.PIT)
		if err := vm.KVM().SetPIT2(pit); err != nil {
			return err
		}
	}
	for i, v := range vm.VCPUs() {
		v.Forget()
		if err := s.VCPUs[i].apply(vm, v.KVM()); err != nil {
			return fmt.Errorf("state of vCPU %d: %w", i, err)
		}
	}
	return nil
}

func (s *VCPU) apply(vm *core.VM, c *kvmapi.VCPU) (err error) {
	set := func(f func() error) {
		if err == nil {
			err = f()
		}
	}
	if now, terr := c.TSCKHz(); terr == nil && s.TSCKHz != 0 && now != s.TSCKHz && vm.KVM().Check(kvmapi.CapTSCControl) != 0 {
		set(func() error { return c.SetTSCKHz(s.TSCKHz) })
	}
	if vm.HasIRQChip() {
		set(func() error { return c.SetMPState(s.MPState) })
	}
	set(func() error { return c.SetSregs(&s.Sregs) }) // with the APIC's base, for SetLAPIC
	set(func() error { return c.SetRegs(&s.Regs) })
	set(func() error {
		buf := make([]byte, max(4096, vm.KVM().Check(kvmapi.CapXSAVE2)))
		if len(s.XSAVE) > len(buf) {
			for _, b := range s.XSAVE[len(buf):] {
				if b != 0 {
					return fmt.Errorf("it uses %d bytes of extended state, this host has %d: restore it on a host with the same processor features", len(s.XSAVE), len(buf))
				}
			}
		}
		copy(buf, s.XSAVE)
		return c.SetXSAVE(buf)
	})
	set(func() error { return c.SetXCRs(&s.XCRs) })
	set(func() error { return c.SetDebugRegs(&s.DebugRegs) })
	if len(s.LAPIC) > 0 {
		set(func() error {
			var l kvmapi.LAPICState
			copy(l.Regs[:], s.LAPIC)
			return c.SetLAPIC(&l)
		})
	}
	set(func() error { return writeMSRs(c, s.MSRs) }) // the TSC deadline needs the LAPIC's timer mode
	set(func() error { return c.SetVCPUEvents(&s.Events) })
	return err
}

// writeMSRs writes entries, the TSC deadline last. One that KVM refuses is an
// error only where the VM's own value is another.
func writeMSRs(c *kvmapi.VCPU, entries []kvmapi.MSREntry) error {
	var first, last []kvmapi.MSREntry
	for _, e := range entries {
		if e.Index == msrTSCDeadline {
			last = append(last, e)
		} else {
			first = append(first, e)
		}
	}
	for _, list := range [][]kvmapi.MSREntry{first, last} {
		for len(list) > 0 {
			n, err := c.SetMSRs(list)
			if err != nil {
				return err
			}
			if n == len(list) {
				break
			}
			refused := list[n]
			now := []kvmapi.MSREntry{{Index: refused.Index}}
			if got, err := c.MSRs(now); err == nil && got == 1 && now[0].Data != refused.Data {
				return fmt.Errorf("msr %#x cannot be set to %#x here: restore it on a host with the same processor features", refused.Index, refused.Data)
			}
			list = list[n+1:]
		}
	}
	return nil
}
