package pci

import (
	"sync"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/bus"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/layout"
)

// line is an interrupt line that functions of several slots raise.
type line struct {
	mu    sync.Mutex
	slots uint32 // a bit a slot that raises it
	out   bus.Line
}

func (l *line) set(slot int, level bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.slots
	if level {
		l.slots |= 1 << slot
	} else {
		l.slots &^= 1 << slot
	}
	if (old != 0) != (l.slots != 0) {
		l.out.Set(l.slots != 0)
	}
}

func (h *Host) lineNumber(slot int) uint32 { return layout.PCIIRQBase + uint32(slot%pins) }

// SetINTx raises or lowers INTA. The guest does not see it while it uses MSI-X.
func (f *Function) SetINTx(level bool) {
	f.intx.Lock()
	defer f.intx.Unlock()
	f.intx.raised = level
	f.driveINTx()
}

// pending reports the interrupt status bit: the device's wish, whatever the
// guest has switched off.
func (f *Function) pending() bool {
	f.intx.Lock()
	defer f.intx.Unlock()
	return f.intx.raised
}

// updateINTx is called when the configuration has changed, with mu held.
func (f *Function) updateINTx() {
	off := le.Uint16(f.config[regCommand:])&commandINTxDisable != 0 || f.msix != nil && f.msix.Enabled()
	f.intx.Lock()
	defer f.intx.Unlock()
	if f.intx.off != off {
		f.intx.off = off
		f.driveINTx()
	}
}

func (f *Function) driveINTx() {
	if l := f.host.lines[f.slot%pins]; l != nil && f.spec.Pin {
		l.set(f.slot, f.intx.raised && !f.intx.off)
	}
}
