package insn

import "github.com/vantage-vmi/vantage/hypervisor"

// Store is what an instruction writes to memory.
type Store struct {
	Addr  uint64 // linear
	Size  int    // bytes; 0: it writes nothing
	Value uint64
	Lock  bool // read, change and write are one, which others must not come between
}

// Load reads size bytes of guest memory at a linear address; false lets Exec
// give up.
type Load func(addr uint64, size int) (uint64, bool)

// doing is one instruction being done.
type doing struct {
	*Inst
	r     *hypervisor.Registers
	load  Load
	store Store
	ok    bool
	next  uint64 // RIP afterwards
	rmw   bool   // the store depends on what was loaded from the same place
}

// Exec does in, which r is at, on r: registers, flags and RIP. The store, if
// there is one, is left to the caller. It knows 64-bit code only, and of that
// the instructions that move, add, compare, push, call and jump. It returns
// false, with r as it was, for all others, for what load cannot read, and where
// a trap or shadow stack makes more of the instruction than it knows of. One
// iteration is done of a repeated string instruction: RIP stays on it until RCX
// is zero.
//
// It does not look whether the guest may make the access: a caller that resumes
// the guest by it does (an access that faulted in nested paging has passed).
func (in *Inst) Exec(r *hypervisor.Registers, load Load) (Store, bool) {
	const shadowStacks = 1 << 23 // CR4.CET
	if in.Mode != Mode64 || r.RFLAGS&FlagTF != 0 || r.CR4&shadowStacks != 0 {
		return Store{}, false
	}
	if in.Encoding != Legacy {
		return Store{}, false
	}
	work := *r
	e := &doing{Inst: in, r: &work, load: load, ok: true, next: uint64(r.RIP) + uint64(in.Len)}
	switch in.Map {
	case MapOne:
		e.one()
	case Map0F:
		e.two()
	default:
		e.ok = false
	}
	if !e.ok || !canonical(e.next) || e.store.Size > 0 && !(canonical(e.store.Addr) && canonical(e.store.Addr+uint64(e.store.Size)-1)) {
		return Store{}, false
	}
	work.RIP = hypervisor.VirtAddr(e.next)
	work.RFLAGS &^= FlagRF
	*r = work
	e.store.Value &= sizeMask(e.store.Size)
	// XCHG is atomic without the prefix (SDM 3A, 9.1.2.1).
	e.store.Lock = e.store.Size > 0 && e.rmw && (in.Lock || in.Map == MapOne && in.Opcode&0xfe == 0x86)
	return e.store, true
}

// canonical is of 48-bit addresses: with five levels of page tables some are
// left to the processor that need not be.
func canonical(a uint64) bool { return int64(a<<16)>>16 == int64(a) }

// lockable reports whether LOCK may be before in.
func (in *Inst) lockable() bool {
	op := in.Opcode
	if in.Map == Map0F && (op == 0x20 || op == 0x22) { // AMD: CR8
		return true
	}
	if !in.Mem {
		return false
	}
	switch in.Map {
	case MapOne:
		switch {
		case op < 0x38:
			return op&7 < 2
		case op >= 0x80 && op <= 0x83:
			return in.ext() != 7
		case op == 0x86, op == 0x87:
			return true
		case op == 0xf6, op == 0xf7:
			return in.ext() == 2 || in.ext() == 3
		case op == 0xfe, op == 0xff:
			return in.ext() < 2
		}
	case Map0F:
		switch op {
		case 0xab, 0xb3, 0xbb, 0xb0, 0xb1, 0xc0, 0xc1:
			return true
		case 0xba:
			return in.ext() >= 5
		case 0xc7:
			return in.ext() == 1
		}
	}
	return false
}

func (e *doing) fail() uint64 {
	e.ok = false
	return 0
}

func (e *doing) read(addr uint64, size int) uint64 {
	if !e.ok || !canonical(addr) || !canonical(addr+uint64(size)-1) {
		return e.fail()
	}
	v, ok := e.load(addr, size)
	if !ok {
		return e.fail()
	}
	return v & sizeMask(size)
}

func (e *doing) write(addr uint64, size int, v uint64) {
	e.store = Store{Addr: addr, Size: size, Value: v}
}

// src reads the operand that ModRM's r/m names.
func (e *doing) src(size int) uint64 {
	if !e.Mem {
		return e.get(e.r, e.RM(), size)
	}
	a, ok := e.Linear(e.r)
	if !ok {
		return e.fail()
	}
	return e.read(a, size)
}

// dst writes the operand that ModRM's r/m names.
func (e *doing) dst(size int, v uint64) {
	if !e.Mem {
		e.set(e.r, e.RM(), size, v)
		return
	}
	a, ok := e.Linear(e.r)
	if !ok {
		e.fail()
		return
	}
	e.write(a, size, v)
}

// change is dst of what src read.
func (e *doing) change(size int, v uint64) {
	e.rmw = e.Mem
	e.dst(size, v)
}

func (e *doing) flags(mask, v uint64) { e.r.RFLAGS = e.r.RFLAGS&^mask | v&mask }

// byteOr is the operand's size of an opcode whose lowest bit says byte or more.
func (e *doing) byteOr() int {
	if e.Opcode&1 == 0 {
		return 1
	}
	return e.OpSize
}

// stackSize is that of PUSH, POP, CALL and RET in 64-bit code.
func (e *doing) stackSize() int {
	if e.Data16 && e.REX&8 == 0 {
		return 2
	}
	return 8
}

func (e *doing) push(size int, v uint64) {
	e.r.RSP -= uint64(size)
	e.write(e.r.RSP, size, v)
}

func (e *doing) pop(size int) uint64 {
	v := e.read(e.r.RSP, size)
	e.r.RSP += uint64(size)
	return v
}
