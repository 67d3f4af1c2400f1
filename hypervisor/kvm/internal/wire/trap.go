package wire

import (
	"encoding/binary"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// maxAccess bounds the bytes of one access that an event or answer carries.
const maxAccess = hypervisor.PageSize

// MaxTrap is how many bytes an event or answer has at most.
const MaxTrap = 12 << 10

// Names have one byte each in an event: their index, from 1.
func kinds() [7]hypervisor.TrapKind {
	return [...]hypervisor.TrapKind{
		hypervisor.TrapPage, hypervisor.TrapBreakpoint, hypervisor.TrapHardware, hypervisor.TrapStep,
		hypervisor.TrapMSR, hypervisor.TrapPort, hypervisor.TrapShutdown,
	}
}

func mechanisms() [4]hypervisor.Mechanism {
	return [...]hypervisor.Mechanism{
		hypervisor.MechanismAuto, hypervisor.MechanismReadOnlySlot, hypervisor.MechanismUserfault, hypervisor.MechanismNoSlot,
	}
}

func verbs() [7]hypervisor.TrapVerb {
	return [...]hypervisor.TrapVerb{
		"", hypervisor.TrapContinue, hypervisor.TrapSkip, hypervisor.TrapDeny,
		hypervisor.TrapEmulate, hypervisor.TrapPause, hypervisor.TrapStepOne,
	}
}

// index returns v's place in list from 1 on; 0: not there.
func index[T comparable](list []T, v T) byte { return byte(slices.Index(list, v) + 1) }

// name is the way back.
func name[T comparable](r *reader, list []T) (v T) {
	i := int(r.u8())
	if i == 0 || i > len(list) {
		r.bad = true
		return v
	}
	return list[i-1]
}

// Bits of an event's flags.
const (
	eventLost = 1 << iota
	eventLanded
)

// AppendEvent writes ev behind b. number tells the event from others of its
// channel; the answer repeats it.
func AppendEvent(b []byte, number uint64, ev *hypervisor.TrapEvent) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, number)
	b = le.AppendUint64(b, uint64(ev.Trap))
	ks, ms := kinds(), mechanisms()
	b = append(b, index(ks[:], ev.Kind), index(ms[:], ev.Mechanism), byte(ev.Access), byte(ev.Known))
	var flags byte
	if ev.Lost {
		flags |= eventLost
	}
	if ev.Landed {
		flags |= eventLanded
	}
	b = append(b, flags)
	b = le.AppendUint32(b, uint32(int32(ev.VCPU)))
	b = le.AppendUint64(b, ev.Sequence)
	b = le.AppendUint64(b, uint64(ev.Addr))
	b = le.AppendUint64(b, uint64(ev.Virt))
	b = le.AppendUint32(b, uint32(int32(ev.Size)))
	b = le.AppendUint32(b, ev.MSR)
	b = le.AppendUint16(b, ev.Port)
	b = le.AppendUint64(b, ev.Value)
	b = le.AppendUint64(b, ev.Dropped)
	b = appendShort(b, ev.Old)
	b = appendShort(b, ev.New)
	return AppendRegisters(b, &ev.Registers)
}

// ParseEvent reads what AppendEvent wrote into ev, which is the caller's to keep.
func ParseEvent(b []byte, ev *hypervisor.TrapEvent) (number uint64, err error) {
	r := reader{b: b}
	ks, ms := kinds(), mechanisms()
	number = r.u64()
	*ev = hypervisor.TrapEvent{
		Trap: hypervisor.TrapID(r.u64()),
		Kind: name(&r, ks[:]), Mechanism: name(&r, ms[:]),
		Access: hypervisor.Access(r.u8()), Known: hypervisor.TrapFields(r.u8()),
	}
	flags := r.u8()
	ev.Lost, ev.Landed = flags&eventLost != 0, flags&eventLanded != 0
	ev.VCPU = int(int32(r.u32()))
	ev.Sequence = r.u64()
	ev.Addr = hypervisor.PhysAddr(r.u64())
	ev.Virt = hypervisor.VirtAddr(r.u64())
	ev.Size = int(int32(r.u32()))
	ev.MSR, ev.Port, ev.Value, ev.Dropped = r.u32(), r.u16(), r.u64(), r.u64()
	ev.Old, ev.New = r.short(), r.short()
	ev.Registers = r.registers()
	return number, r.end("event of a trap")
}

// AppendAnswer writes the answer to event number behind b.
func AppendAnswer(b []byte, number uint64, a *hypervisor.TrapAnswer) []byte {
	b = binary.LittleEndian.AppendUint64(b, number)
	vs := verbs()
	b = append(b, index(vs[:], a.Verb))
	b = appendShort(b, a.Value)
	if a.Registers == nil {
		return append(b, 0)
	}
	return AppendRegisters(append(b, 1), a.Registers)
}

// ParseAnswer reads what AppendAnswer wrote.
func ParseAnswer(b []byte) (number uint64, a hypervisor.TrapAnswer, err error) {
	r := reader{b: b}
	number = r.u64()
	vs := verbs()
	a.Verb = name(&r, vs[:])
	a.Value = r.short()
	switch r.u8() {
	case 0:
	case 1:
		regs := r.registers()
		a.Registers = &regs
	default:
		r.bad = true
	}
	return number, a, r.end("answer to a trap")
}
