package trap

import (
	"github.com/vantage-vmi/vantage/hypervisor"
)

// applyProtection makes what is protected that of next, where it is that of old.
// All vCPUs stand.
func (e *Engine) applyProtection(old, next []area) error {
	f := &e.faults
	if f.fd == nil {
		return nil
	}
	have, want := protected(old), protected(next)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range subtract(have, want) {
		e.drain()
		for i := range f.pending {
			if p := f.pending[i]; p.valid && r.Contains(p.frame.Addr()) {
				f.pending[i] = pending{}
			}
		}
		for frame := range f.orphans {
			if r.Contains(frame.Addr()) {
				delete(f.orphans, frame)
			}
		}
		f.count()
		addr, _ := e.mem.KVMAddr(r.Start)
		if err := f.fd.Unprotect(addr, r.Size); err != nil {
			return err
		}
		if err := f.fd.Unregister(addr, r.Size); err != nil {
			return err
		}
	}
	for _, r := range subtract(want, have) {
		addr, _ := e.mem.KVMAddr(r.Start)
		if err := f.fd.Register(addr, r.Size); err != nil {
			return err
		}
		if err := f.fd.Protect(addr, r.Size); err != nil {
			return err
		}
	}
	return nil
}

// protected returns the ranges of areas that are protected; one never spans two
// ranges of RAM, as no trap does.
func protected(areas []area) (out []hypervisor.Range) {
	for _, a := range areas {
		if a.protect {
			out = append(out, hypervisor.Range{Start: a.first.Addr(), Size: a.size()})
		}
	}
	return out
}

// subtract returns the parts of a that are not in b; both are sorted.
func subtract(a, b []hypervisor.Range) (out []hypervisor.Range) {
	for _, r := range a {
		for _, x := range b {
			if x.End() <= r.Start || x.Start >= r.End() {
				continue
			}
			if x.Start > r.Start {
				out = append(out, hypervisor.Range{Start: r.Start, Size: uint64(x.Start - r.Start)})
			}
			if x.End() >= r.End() {
				r.Size = 0
				break
			}
			r = hypervisor.Range{Start: x.End(), Size: uint64(r.End() - x.End())}
		}
		if r.Size > 0 {
			out = append(out, r)
		}
	}
	return out
}
