package pci

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/bus"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/layout"
)

// MaxFunctions is how many functions there are besides the bridge: one a slot.
const MaxFunctions = slots - 1

const (
	slots     = 32
	pins      = 4    // lines that the slots share
	extended  = 4096 // bytes of a function's configuration space by memory
	configLen = 256  // and by ports; behind that all reads as zeros
)

// Config is what a Host needs of its machine.
type Config struct {
	Ports, MMIO *bus.Bus
	// MSI gives the vectors of MSI-X tables.
	MSI bus.MSI
	// Line gives the lines for INTA to INTD. nil: guests must use MSI-X.
	Line func(gsi uint32) bus.Line
	// ResetPort answers at layout.PortReset, a byte in the middle of the address
	// register of mechanism #1, which is accessed as a whole only. nil: no one.
	ResetPort bus.Handler
	Logger    *slog.Logger // nil: nothing is logged
}

// Host is the host bridge, in slot 0, and the bus behind it.
type Host struct {
	cfg     Config
	log     *slog.Logger
	address atomic.Uint32 // the register at layout.PortPCIConfig
	bridge  *Function
	lines   [pins]*line

	mu   sync.Mutex // Add and Close
	free hypervisor.PhysAddr

	functions [slots]atomic.Pointer[Function]
}

// NewHost puts the bridge on the buses of cfg.
func NewHost(cfg Config) (*Host, error) {
	h := &Host{cfg: cfg, log: cfg.Logger, free: layout.PCIWindow}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	if cfg.Line != nil {
		for i := range h.lines {
			h.lines[i] = &line{out: cfg.Line(layout.PCIIRQBase + uint32(i))}
		}
	}
	if err := cfg.Ports.Add(layout.PortPCIConfig, 8, (*ports)(h)); err != nil {
		return nil, fmt.Errorf("PCI configuration ports: %w", err)
	}
	if err := cfg.MMIO.Add(uint64(layout.PCIECAM), layout.PCIECAMSize, (*ecam)(h)); err != nil {
		cfg.Ports.Remove(layout.PortPCIConfig)
		return nil, fmt.Errorf("PCI configuration space: %w", err)
	}
	var err error
	h.bridge, err = h.Add(Spec{Vendor: VendorRedHat, Device: deviceHostBridge, Class: classHostBridge})
	return h, err
}

// Add makes a function of spec in the next free slot, with its BARs in place and
// memory decoding off, as after a reset.
func (h *Host) Add(spec Spec) (*Function, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for slot := range h.functions {
		if h.functions[slot].Load() != nil {
			continue
		}
		f, err := newFunction(h, slot, spec)
		if err != nil {
			return nil, fmt.Errorf("PCI slot %d: %w", slot, err)
		}
		h.functions[slot].Store(f)
		return f, nil
	}
	return nil, fmt.Errorf("PCI bus: all %d slots are in use: %w", slots, hypervisor.ErrNoResources)
}

// place finds room in the window for a BAR of size bytes. Called with mu held.
func (h *Host) place(size uint64) (uint32, error) {
	at := (uint64(h.free) + size - 1) &^ (size - 1)
	if !inWindow(at, size) {
		return 0, fmt.Errorf("PCI window: no room for a BAR of %d bytes: %w", size, hypervisor.ErrNoResources)
	}
	h.free = hypervisor.PhysAddr(at + size)
	return uint32(at), nil
}

func inWindow(at, size uint64) bool {
	return size <= layout.PCIWindowSize && at >= uint64(layout.PCIWindow) && at-uint64(layout.PCIWindow) <= layout.PCIWindowSize-size
}

// Close takes the bridge and all functions off the buses and gives their vectors
// back. No vCPU may run any more.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cfg.Ports.Remove(layout.PortPCIConfig)
	h.cfg.MMIO.Remove(uint64(layout.PCIECAM))
	var errs []error
	for i := range h.functions {
		if f := h.functions[i].Swap(nil); f != nil {
			errs = append(errs, f.close())
		}
	}
	return errors.Join(errs...)
}

// at returns the function of a device and function number, or nil.
func (h *Host) at(devfn uint32) *Function {
	if devfn&7 != 0 {
		return nil
	}
	return h.functions[devfn>>3&(slots-1)].Load()
}

// ports are the eight ports of mechanism #1.
type ports Host

const (
	addressEnable = 1 << 31
	dataPort      = 4 // from layout.PortPCIConfig
)

// target returns what the address register selects.
func (p *ports) target() (*Function, int) {
	a := p.address.Load()
	if a&addressEnable == 0 || a>>16&0xff != 0 {
		return nil, 0
	}
	return (*Host)(p).at(a >> 8 & 0xff), int(a & 0xfc)
}

// Read is bus.Handler's.
func (p *ports) Read(offset uint64, b []byte) {
	ones(b)
	switch {
	case offset == 0 && len(b) == 4:
		le.PutUint32(b, p.address.Load())
	case p.resets(offset, b):
		p.cfg.ResetPort.Read(0, b)
	case offset >= dataPort:
		if f, reg := p.target(); f != nil {
			f.readConfig(reg+int(offset-dataPort), b)
		}
	}
}

// Write is bus.Handler's.
func (p *ports) Write(offset uint64, b []byte) {
	switch {
	case offset == 0 && len(b) == 4:
		p.address.Store(le.Uint32(b))
	case p.resets(offset, b):
		p.cfg.ResetPort.Write(0, b)
	case offset >= dataPort:
		if f, reg := p.target(); f != nil {
			f.writeConfig(reg+int(offset-dataPort), b)
		}
	}
}

func (p *ports) resets(offset uint64, b []byte) bool {
	return p.cfg.ResetPort != nil && offset == layout.PortReset-layout.PortPCIConfig && len(b) == 1
}

// ecam is the memory-mapped configuration space of the bus.
type ecam Host

// Read is bus.Handler's.
func (e *ecam) Read(offset uint64, b []byte) {
	ones(b)
	if f := (*Host)(e).at(uint32(offset / extended)); f != nil {
		f.readConfig(int(offset%extended), b)
	}
}

// Write is bus.Handler's.
func (e *ecam) Write(offset uint64, b []byte) {
	if f := (*Host)(e).at(uint32(offset / extended)); f != nil {
		f.writeConfig(int(offset%extended), b)
	}
}

func ones(b []byte) {
	for i := range b {
		b[i] = 0xff
	}
}
