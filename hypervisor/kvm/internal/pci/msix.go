package pci

import (
	"errors"
	"fmt"
	"sync"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/bus"
)

// MSIX is a function's MSI-X table and pending bits (PCI 3.0, 6.8.2), which are
// the registers of a BAR. It is safe for concurrent use.
type MSIX struct {
	host *Host

	mu      sync.Mutex
	enabled bool
	masked  bool // all of them
	entries []entry
}

type entry struct {
	addr    uint64
	data    uint32
	masked  bool
	pending bool
	// The mask is kept here, and what is signalled meanwhile: the vector goes on
	// carrying its last message, since to take a message from KVM costs it a wait
	// for all its processors. A backend in the kernel knows no mask of ours: the
	// vectors that it has are masked for real.
	vector   bus.Vector
	external bool
	routed   bool // the vector carries addr and data
	open     bool // the vector is not masked
}

func newMSIX(h *Host, n int) (*MSIX, error) {
	if n > MaxVectors {
		return nil, fmt.Errorf("%d MSI-X vectors: at most %d", n, MaxVectors)
	}
	m := &MSIX{host: h, entries: make([]entry, n)}
	for i := range m.entries {
		v, err := h.cfg.MSI.NewVector()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("MSI-X vector %d: %w", i, err), m.close())
		}
		m.entries[i] = entry{vector: v, masked: true}
	}
	return m, nil
}

func (m *MSIX) close() error {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for i := range m.entries {
		if v := m.entries[i].vector; v != nil {
			errs = append(errs, v.Close())
			m.entries[i].vector = nil
		}
	}
	m.enabled = false
	return errors.Join(errs...)
}

// capability returns the entry of the list of capabilities.
func (m *MSIX) capability(barIndex uint32) Capability {
	data, mask := make([]byte, msixLen-2), make([]byte, 2)
	le.PutUint16(data, uint16(len(m.entries)-1))
	le.PutUint32(data[msixTable-2:], barIndex)
	le.PutUint32(data[msixPBA-2:], pbaOffset|barIndex)
	le.PutUint16(mask, msixEnable|msixMaskAll)
	return Capability{ID: capMSIX, Data: data, Mask: mask, Write: func(_, _ int, data []byte) {
		m.control(le.Uint16(data))
	}}
}

// control sets the message control register.
func (m *MSIX) control(flags uint16) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.enabled, m.masked = flags&msixEnable != 0, flags&msixMaskAll != 0
	for i := range m.entries {
		m.update(i)
	}
}

// Enabled reports whether the guest uses MSI-X.
func (m *MSIX) Enabled() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.enabled
}

// Len returns the number of vectors.
func (m *MSIX) Len() int { return len(m.entries) }

// Signal sends the message of vector i, or keeps it pending while it is masked.
// It returns false when the guest does not use MSI-X.
func (m *MSIX) Signal(i int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.enabled {
		return false
	}
	if i < 0 || i >= len(m.entries) {
		return true
	}
	e := &m.entries[i]
	if m.masked || e.masked || !e.routed {
		e.pending = true
		return true
	}
	e.vector.Signal()
	return true
}

// External gives vector i to a backend in the kernel, which writes to the
// eventfd that is returned, or takes it back.
func (m *MSIX) External(i int, on bool) (fd int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i < 0 || i >= len(m.entries) || m.entries[i].vector == nil {
		return -1, fmt.Errorf("MSI-X vector %d: there are %d", i, len(m.entries))
	}
	e := &m.entries[i]
	e.external = on
	m.update(i)
	return e.vector.EventFD(), nil
}

// update does what entry i says. Called with mu held.
func (m *MSIX) update(i int) {
	e := &m.entries[i]
	if e.vector == nil {
		return
	}
	masked := !m.enabled || m.masked || e.masked
	if masked {
		if e.external && e.open {
			m.route(i, true)
		}
		return
	}
	if !e.routed || !e.open {
		m.route(i, false)
	}
	if e.pending && e.routed {
		e.pending = false
		e.vector.Signal()
	}
}

func (m *MSIX) route(i int, masked bool) {
	e := &m.entries[i]
	if err := e.vector.Route(e.addr, e.data, masked); err != nil {
		// The guest wrote a message that KVM does not take.
		m.host.log.Debug("MSI-X message refused", "vector", i, "error", err)
		e.routed = false
		return
	}
	e.routed, e.open = true, !masked
}

// Read is bus.Handler's.
func (m *MSIX) Read(offset uint64, p []byte) {
	clear(p)
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range p {
		p[i] = m.byteAt(offset + uint64(i))
	}
}

func (m *MSIX) byteAt(off uint64) byte {
	if off >= pbaOffset {
		var b byte
		for bit := range uint64(8) {
			if n := (off-pbaOffset)*8 + bit; n < uint64(len(m.entries)) && m.entries[n].pending {
				b |= 1 << bit
			}
		}
		return b
	}
	if off/entrySize >= uint64(len(m.entries)) {
		return 0
	}
	var raw [entrySize]byte
	m.entries[off/entrySize].put(raw[:])
	return raw[off%entrySize]
}

func (e *entry) put(raw []byte) {
	le.PutUint64(raw, e.addr)
	le.PutUint32(raw[entryData:], e.data)
	if e.masked {
		le.PutUint32(raw[entryControl:], entryMasked)
	}
}

// Write is bus.Handler's. Aligned words and pairs of words count, as the
// specification has it; the pending bits are read-only.
func (m *MSIX) Write(offset uint64, p []byte) {
	if offset >= pbaOffset || len(p) != 4 && len(p) != 8 || offset%uint64(len(p)) != 0 {
		return
	}
	i := int(offset / entrySize)
	m.mu.Lock()
	defer m.mu.Unlock()
	if i >= len(m.entries) {
		return
	}
	var raw [entrySize]byte
	e := &m.entries[i]
	e.put(raw[:])
	copy(raw[offset%entrySize:], p)
	m.set(i, raw[:])
}

// set takes over an entry as the guest wrote it.
func (m *MSIX) set(i int, raw []byte) {
	e := &m.entries[i]
	addr, data := le.Uint64(raw)&^3, le.Uint32(raw[entryData:])
	if addr != e.addr || data != e.data {
		e.addr, e.data, e.routed = addr, data, false
	}
	e.masked = le.Uint32(raw[entryControl:])&entryMasked != 0
	m.update(i)
}
