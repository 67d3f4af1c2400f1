package hypervisor

import (
	"context"
	"fmt"
	"strings"
)

// Access is a set of ways to use memory, a port or an MSR.
type Access uint8

// Ways of access. To a port or MSR, read is IN or RDMSR, write is OUT or WRMSR.
const (
	AccessRead Access = 1 << iota
	AccessWrite
	AccessExecute
)

// Has reports whether all of b is in a.
func (a Access) Has(b Access) bool { return a&b == b }

func (a Access) String() string {
	var s strings.Builder
	for i, c := range "rwx" {
		if a&(1<<i) == 0 {
			c = '-'
		}
		s.WriteRune(c)
	}
	return s.String()
}

// TrapKind is what a trap stops the guest on.
type TrapKind string

// Kinds of traps.
const (
	TrapPage       TrapKind = "page"       // an access to guest-physical memory
	TrapBreakpoint TrapKind = "breakpoint" // an INT3 put into guest memory
	TrapHardware   TrapKind = "hardware"   // a debug register (SDM 3B, 17.2)
	TrapStep       TrapKind = "step"       // every instruction of a vCPU
	TrapMSR        TrapKind = "msr"        // RDMSR, WRMSR
	TrapPort       TrapKind = "port"       // IN, OUT
	TrapShutdown   TrapKind = "shutdown"   // a triple fault
)

// Mechanism is how a driver makes a trap. Mechanisms differ in cost and in what
// they can see and veto: docs/TRAPS.md.
type Mechanism string

// Mechanisms of page traps. The others have one each.
const (
	MechanismAuto         Mechanism = ""               // the driver picks
	MechanismReadOnlySlot Mechanism = "read-only-slot" // KVM_MEM_READONLY: writes, before they land
	MechanismUserfault    Mechanism = "userfaultfd"    // write-protection: writes, at the page's granularity
	MechanismNoSlot       Mechanism = "no-slot"        // the page is no RAM for KVM: reads, writes, execution
)

// AllVCPUs is Trap.VCPU's value for every vCPU of the VM.
const AllVCPUs = -1

// Trap says what to stop the guest on. Fields that its kind does not name are
// ignored.
type Trap struct {
	Kind TrapKind `json:"kind"`
	// Access of page (any set), hardware (x alone; w; rw), msr and port (r, w, rw).
	// Of a breakpoint x is meant in any case; with w, a write to the planted byte
	// is told too, as an event with AccessWrite.
	Access Access `json:"access"`
	// Addr is the first byte watched (page), or the instruction (breakpoint).
	Addr PhysAddr `json:"addr"`
	// Size is how many bytes are watched from Addr (page; any number, the rest of
	// the pages it touches is not told), or at Virt (hardware: 1, 2, 4 or 8).
	Size uint64 `json:"size"`
	// Virt is the linear address (hardware).
	Virt VirtAddr `json:"virt"`
	// VCPU is the one vCPU that hardware and step are for, or AllVCPUs.
	VCPU int `json:"vcpu"`
	// MSR is the first of Count registers (msr), Port the first of Count ports
	// (port). A Count of 0 is 1.
	MSR   uint32 `json:"msr"`
	Port  uint16 `json:"port"`
	Count uint32 `json:"count"`
	// Mechanism, for page.
	Mechanism Mechanism `json:"mechanism"`
	// MaxRate is how many events a second are told; what comes above it goes on
	// as by TrapContinue and is counted (TrapEvent.Dropped). 0: no limit.
	MaxRate int `json:"max_rate"`
}

// TrapID names a trap of one VM handle.
type TrapID uint64

// TrapEvent is one stop of one vCPU. The vCPU waits until the handler answers.
type TrapEvent struct {
	Trap     TrapID   `json:"trap"`
	Kind     TrapKind `json:"kind"`
	VCPU     int      `json:"vcpu"`
	Sequence uint64   `json:"sequence"` // counts a VM's events, from 1
	Access   Access   `json:"access"`   // what the guest does (exactly one)

	// Addr is the gpa that is accessed, or of the instruction; Virt the gva of
	// it. Known says which of these, of Old and of New are filled in.
	Addr  PhysAddr   `json:"addr"`
	Virt  VirtAddr   `json:"virt"`
	Size  int        `json:"size"` // of the access in bytes; 0: not known
	Old   []byte     `json:"old"`  // before the access; Size bytes
	New   []byte     `json:"new"`  // what a write is about to store (or stored); Size bytes
	Known TrapFields `json:"known"`

	MSR   uint32 `json:"msr"`
	Port  uint16 `json:"port"`
	Value uint64 `json:"value"` // that WRMSR or OUT is about to write

	// Registers at the instruction that was stopped; Registers.Valid is 0 where
	// the mechanism cannot tell (docs/TRAPS.md). Without KnownRIP they are those
	// behind the instruction.
	Registers Registers `json:"registers"`
	Mechanism Mechanism `json:"mechanism"` // of page
	Dropped   uint64    `json:"dropped"`   // events of this trap not told since the last, for its MaxRate
	// Lost, of a breakpoint, says that its page was given back to the host
	// (balloon) or replaced: the trap is there no more.
	Lost bool `json:"lost"`
	// Landed says that a write is done already: it can be undone (TrapSkip puts
	// Old back) where Old is known, but another vCPU may have seen it.
	Landed bool `json:"landed"`
}

// TrapFields says which of a TrapEvent's fields are known.
type TrapFields uint8

// Fields of TrapEvent.
const (
	KnownAddr TrapFields = 1 << iota
	KnownVirt
	KnownOld
	KnownNew
	KnownRIP
)

// Has reports whether all of g is in f.
func (f TrapFields) Has(g TrapFields) bool { return f&g == g }

// TrapVerb is what a handler lets a stopped vCPU do.
type TrapVerb string

// Verbs. Which kinds take which is in docs/TRAPS.md. One that the mechanism
// cannot do pauses the VM behind the access, so that nothing slips by unseen.
const (
	TrapContinue TrapVerb = "continue" // as if nothing had been set
	TrapSkip     TrapVerb = "skip"     // the access is not done; the instruction is over
	TrapDeny     TrapVerb = "deny"     // of msr: as skip, with the #GP of a register that is not there; else skip
	TrapEmulate  TrapVerb = "emulate"  // the access is done with Value in its place
	TrapPause    TrapVerb = "pause"    // as continue, but the whole VM is paused behind it
	TrapStepOne  TrapVerb = "step"     // as continue, and the next instruction's end is told as an event of kind step
)

// TrapAnswer is what a handler answers. The zero value lets the guest go on.
type TrapAnswer struct {
	Verb  TrapVerb `json:"verb"`
	Value []byte   `json:"value"` // of TrapEmulate: little endian, as many bytes as TrapEvent.Size
	// Registers, when it is not nil, are set before the vCPU goes on (the groups
	// in Valid). For TrapContinue of a breakpoint with another RIP, the vCPU goes
	// on there and the instruction under the breakpoint is not run.
	Registers *Registers `json:"registers,omitempty"`
}

// TrapHandler answers one event. Handlers of different vCPUs run at the same
// time; of one vCPU, one after the other. ev is valid until the handler returns; a
// copy of *ev, which shares Old and New, may be kept. It must not call Pause or
// SetTrap of its own VM: the answer says what to do.
type TrapHandler func(ev *TrapEvent) TrapAnswer

// Trapper sets traps on a running guest.
type Trapper interface {
	// SetTrap arms t on a VM that may be running. The trap is in force on every
	// vCPU when it returns. It returns an error that wraps ErrNotSupported for
	// what the mechanism or this host cannot do, ErrNotRAM for an address without
	// RAM, and ErrNoResources when no debug register or memory slot is left.
	SetTrap(ctx context.Context, t Trap, h TrapHandler) (TrapID, error)
	// RemoveTrap takes a trap away: when it returns, its handler does not run and
	// will not be called, and the guest's memory is as if it had never been set.
	RemoveTrap(ctx context.Context, id TrapID) error
}

// DirtyTracker tells which pages of a guest were written, without stopping it.
type DirtyTracker interface {
	// StartDirty begins to track. All pages count as clean then.
	StartDirty(ctx context.Context) error
	// Dirty returns the pages that were written since StartDirty or the last call
	// of Dirty, by the guest and by its devices: sorted, merged.
	Dirty(ctx context.Context) ([]Range, error)
	// StopDirty ends the tracking and its cost.
	StopDirty(ctx context.Context) error
}

// RegisterWriter writes vCPU registers.
type RegisterWriter interface {
	// SetRegisters writes the groups in r.Valid of vCPU r.VCPU. A VM that runs is
	// stopped for that moment.
	SetRegisters(ctx context.Context, r Registers) error
}

// TrapError says what is wrong with a trap that was asked for.
type TrapError struct {
	Trap Trap
	Err  error
}

func (e *TrapError) Error() string {
	return fmt.Sprintf("trap on %s: %v", e.Trap.what(), e.Err)
}

// Unwrap returns the cause.
func (e *TrapError) Unwrap() error { return e.Err }

func (t Trap) what() string {
	switch t.Kind {
	case TrapPage:
		return fmt.Sprintf("%v of %d bytes at gpa %v", t.Access, t.Size, t.Addr)
	case TrapBreakpoint:
		return fmt.Sprintf("execution at gpa %v", t.Addr)
	case TrapHardware:
		return fmt.Sprintf("%v of %d bytes at gva %v", t.Access, t.Size, t.Virt)
	case TrapMSR:
		return fmt.Sprintf("%v of msr %#x", t.Access, t.MSR)
	case TrapPort:
		return fmt.Sprintf("%v of port %#x", t.Access, t.Port)
	}
	return string(t.Kind)
}
