package trap

import "github.com/vantage-vmi/vantage/hypervisor/kvm/internal/insn"

// window is the bytes in front of an address, and from it on.
type window [2 * insn.MaxLen]byte

// candidate is an instruction that may have been the last one before an address.
type candidate struct {
	in    insn.Inst
	stays bool // a repeated one that is not over: the address is still its own
}

// writes keeps, for the addresses behind instructions that have written to watched
// pages, which instructions they can have been: they are few, and taking them
// apart at every length is most of what an event costs.
type writes struct {
	kept [16]struct {
		pc       uint64
		code     window
		front, n int
		mode     insn.Mode
		found    []candidate
	}
	next int
}

// at returns the instructions that may have written to memory with RIP at pc now;
// of code, front bytes in front of pc and n from it on are there.
func (w *writes) at(pc uint64, code *window, front, n int, mode insn.Mode) []candidate {
	for i := range w.kept {
		k := &w.kept[i]
		if k.pc == pc && k.front == front && k.n == n && k.mode == mode && k.code == *code {
			return k.found
		}
	}
	k := &w.kept[w.next%len(w.kept)]
	w.next++
	k.pc, k.code, k.front, k.n, k.mode = pc, *code, front, n, mode
	k.found = k.found[:0:0] // who has the old ones may still be at it
	if in, err := insn.Decode(code[insn.MaxLen:insn.MaxLen+n], mode); err == nil && in.Rep != 0 {
		k.found = append(k.found, candidate{in, true})
	}
	for size := 1; size <= front; size++ {
		in, err := insn.Decode(code[insn.MaxLen-size:insn.MaxLen], mode)
		if err == nil && in.Len == size && in.Writes() {
			k.found = append(k.found, candidate{in, false})
		}
	}
	return k.found
}
