package pci

import (
	"errors"
	"fmt"
)

type bar struct {
	BAR
	mapped uint64 // where it is on the bus; 0: it is not
}

// placeBARs gives each BAR its first address.
func (f *Function) placeBARs(bars []BAR) error {
	if len(bars) > maxBARs {
		return errors.New("more than six BARs")
	}
	for i, b := range bars {
		if !powerOfTwo(b.Size) || b.Size < 4096 || b.Size > 1<<31 {
			return fmt.Errorf("BAR %d of %d bytes: want a power of two, at least a page", i, b.Size)
		}
		at, err := f.host.place(b.Size)
		if err != nil {
			return err
		}
		le.PutUint32(f.config[regBAR+4*i:], at)
		// A guest finds the size by writing ones: bits below it stay zero.
		le.PutUint32(f.mask[regBAR+4*i:], ^uint32(b.Size-1))
		f.bars = append(f.bars, bar{BAR: b})
	}
	return nil
}

// moveBARs puts the BARs where their registers say while memory decoding is on.
// One outside of the window, or over another's, is not mapped: what a bridge in
// front of it would do. Called with mu held.
func (f *Function) moveBARs() {
	on := le.Uint16(f.config[regCommand:])&commandMemory != 0
	want := func(i int) uint64 {
		at := uint64(le.Uint32(f.config[regBAR+4*i:]))
		if !on || !inWindow(at, f.bars[i].Size) {
			return 0
		}
		return at
	}
	for i := range f.bars {
		if b := &f.bars[i]; b.mapped != want(i) {
			f.unmap(b)
		}
	}
	for i := range f.bars {
		b, at := &f.bars[i], want(i)
		if at == 0 || b.mapped == at {
			continue
		}
		if err := f.host.cfg.MMIO.Add(at, b.Size, b.Handler); err != nil {
			f.host.log.Debug("PCI BAR cannot be mapped", "slot", f.slot, "bar", i, "error", err)
			continue
		}
		b.mapped = at
	}
}

func (f *Function) unmap(b *bar) {
	if b.mapped != 0 {
		f.host.cfg.MMIO.Remove(b.mapped)
		b.mapped = 0
	}
}
