package trap

import (
	"fmt"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
)

// maxFilterMSRs is how many MSRs one range of the filter has at most
// (KVM_MSR_FILTER_MAX_BITMAP_SIZE, include/uapi/asm/kvm.h, in bits).
const maxFilterMSRs = 0x600 * 8

const (
	msrEFER = 0xc000_0080
	eferLME = 1 << 8
)

// rebuildMSRs makes KVM's filter that of list.
func (e *Engine) rebuildMSRs(list []*trap) error {
	var msrs []*trap
	for _, t := range list {
		if t.Kind == hypervisor.TrapMSR {
			msrs = append(msrs, t)
		}
	}
	if len(msrs) == 0 && len(e.msrs) == 0 {
		return nil
	}
	ranges, err := filter(msrs)
	if err != nil {
		return err
	}
	if err := e.kvm.SetMSRFilter(ranges); err != nil {
		return err
	}
	e.msrs = msrs
	return nil
}

// filter makes ranges of traps: those near each other in one, a bit clear where
// an access is to exit.
func filter(traps []*trap) ([]kvmapi.MSRRange, error) {
	var out []kvmapi.MSRRange
	for _, kind := range []struct {
		access hypervisor.Access
		flag   uint32
	}{{hypervisor.AccessRead, kvmapi.MSRFilterRead}, {hypervisor.AccessWrite, kvmapi.MSRFilterWrite}} {
		var of []*trap
		for _, t := range traps {
			if t.Access.Has(kind.access) {
				of = append(of, t)
			}
		}
		slices.SortFunc(of, func(a, b *trap) int { return int(int64(a.MSR) - int64(b.MSR)) })
		for len(of) > 0 {
			base, end := uint64(of[0].MSR), uint64(0)
			n := 0
			for ; n < len(of) && uint64(of[n].MSR)+uint64(of[n].count())-base <= maxFilterMSRs; n++ {
				end = max(end, uint64(of[n].MSR)+uint64(of[n].count()))
			}
			if n == 0 {
				return nil, fmt.Errorf("%d MSRs from %#x: at most %d in one trap: %w", of[0].count(), of[0].MSR, maxFilterMSRs, hypervisor.ErrNoResources)
			}
			r := kvmapi.MSRRange{Flags: kind.flag, Base: uint32(base), Count: uint32(end - base), Bitmap: make([]byte, (end-base+7)/8)}
			for i := range r.Bitmap {
				r.Bitmap[i] = 0xff
			}
			for _, t := range of[:n] {
				for i := uint64(t.MSR) - base; i < uint64(t.MSR)-base+uint64(t.count()); i++ {
					r.Bitmap[i/8] &^= 1 << (i % 8)
				}
			}
			out = append(out, r)
			of = of[n:]
		}
	}
	if len(out) > kvmapi.MSRFilterMaxRanges {
		return nil, fmt.Errorf("%d ranges of MSRs, KVM has %d: %w", len(out), kvmapi.MSRFilterMaxRanges, hypervisor.ErrNoResources)
	}
	return out, nil
}

// MSR is core.Hooks'.
func (e *Engine) MSR(v *core.VCPU, write bool) bool {
	e.late(v)
	index, value, reason := v.Run().MSR()
	if reason != kvmapi.MSRExitReasonFilter {
		return false
	}
	access := hypervisor.AccessRead
	if write {
		access = hypervisor.AccessWrite
	}
	var ts []*trap
	for _, t := range e.msrs {
		if t.Access.Has(access) && index >= t.MSR && uint64(index) < uint64(t.MSR)+uint64(t.count()) {
			ts = append(ts, t)
		}
	}
	a := answer{verb: hypervisor.TrapContinue}
	if len(ts) > 0 {
		ev := e.event(v, hypervisor.TrapMSR, access)
		ev.MSR, ev.Size, ev.Known = index, 8, hypervisor.KnownRIP
		if old, ok := e.readMSR(v, index); ok {
			ev.Old = le(old, 8)
			ev.Known |= hypervisor.KnownOld
		}
		if write {
			ev.Value, ev.New = value, le(value, 8)
			ev.Known |= hypervisor.KnownNew
		}
		if a = e.tell(v, ts, ev); a.ended {
			return true
		}
	}
	e.accessMSR(v, index, value, write, &a)
	e.swallowEnd(v, &a)
	e.behind(v, a)
	return true
}

// accessMSR does the access as a says: KVM has left it to us.
func (e *Engine) accessMSR(v *core.VCPU, index uint32, value uint64, write bool, a *answer) {
	switch a.verb {
	case hypervisor.TrapDeny:
		v.Run().AnswerMSR(0, true)
		return
	case hypervisor.TrapSkip:
		v.Run().AnswerMSR(0, false)
		return
	case hypervisor.TrapEmulate:
		value = number(a.value)
		if !write {
			v.Run().AnswerMSR(value, false)
			return
		}
	}
	if !write {
		value, ok := e.readMSR(v, index)
		v.Run().AnswerMSR(value, !ok)
		return
	}
	v.Run().AnswerMSR(0, !e.writeMSR(v, index, value))
}

func (e *Engine) readMSR(v *core.VCPU, index uint32) (uint64, bool) {
	entry := [1]kvmapi.MSREntry{{Index: index}}
	n, err := v.KVM().MSRs(entry[:])
	return entry[0].Data, err == nil && n == 1
}

// writeMSR writes for the guest. KVM allows us more than the guest in one place.
func (e *Engine) writeMSR(v *core.VCPU, index uint32, value uint64) bool {
	if index == msrEFER {
		if r, err := v.Registers(); err != nil || r.CR0&cr0PG != 0 && (r.EFER^value)&eferLME != 0 {
			return false
		}
	}
	n, err := v.KVM().SetMSRs([]kvmapi.MSREntry{{Index: index, Data: value}})
	return err == nil && n == 1
}

// swallowEnd lets a step that is asked for at an access that KVM finishes later
// be told at the end of the instruction after it.
func (e *Engine) swallowEnd(v *core.VCPU, a *answer) {
	if len(a.once) == 0 {
		return
	}
	r, err := v.Registers()
	if err != nil {
		return
	}
	if s := e.at(v, &r); s.known {
		e.vcpus[v.Index()].swallow = r.RIP + hypervisor.VirtAddr(s.in.Len)
	}
}
