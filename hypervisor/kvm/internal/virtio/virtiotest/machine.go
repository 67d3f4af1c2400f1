package virtiotest

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/bus"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/pci"
)

// Patience is how long a test waits for what must happen.
const Patience = 20 * time.Second

// Machine is buses, memory and interrupts.
type Machine struct {
	Ports, MMIO bus.Bus
	Mem         *Memory
	Host        *pci.Host

	mu      sync.Mutex
	lines   map[uint32]*Line
	vectors []*Vector
	bells   int
	noBells bool
	maxVec  int
}

// New returns a machine with a PCI bus; it is closed at the end of the test,
// after what the test itself closes by t.Cleanup.
func New(t testing.TB) *Machine {
	m := &Machine{Mem: NewMemory(t), lines: map[uint32]*Line{}, maxVec: 1000}
	var err error
	if m.Host, err = pci.NewHost(pci.Config{Ports: &m.Ports, MMIO: &m.MMIO, MSI: m, Line: m.line}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Host.Close(); err != nil {
			t.Errorf("close the PCI host: %v", err)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.bells != 0 {
			t.Errorf("%d doorbells were not closed", m.bells)
		}
		for _, v := range m.vectors {
			if !v.closed.Load() {
				t.Error("a vector was not closed")
			}
		}
	})
	return m
}

// Line is an interrupt line.
type Line struct{ level atomic.Bool }

// Set is bus.Line's.
func (l *Line) Set(level bool) { l.level.Store(level) }

// Level reports whether it is raised.
func (l *Line) Level() bool { return l.level.Load() }

func (m *Machine) line(gsi uint32) bus.Line { return m.Line(gsi) }

// Line returns a line.
func (m *Machine) Line(gsi uint32) *Line {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lines[gsi] == nil {
		m.lines[gsi] = &Line{}
	}
	return m.lines[gsi]
}

// Vector is a message of a device.
type Vector struct {
	m      *Machine
	fd     int
	mu     sync.Mutex
	addr   uint64
	data   uint32
	masked bool
	routed int // how often
	closed atomic.Bool
}

// LimitVectors makes NewVector fail when there are n.
func (m *Machine) LimitVectors(n int) { m.maxVec = n }

// NewVector is bus.MSI's.
func (m *Machine) NewVector() (bus.Vector, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.vectors) >= m.maxVec {
		return nil, errors.New("no vector is left")
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	v := &Vector{m: m, fd: fd, masked: true}
	m.vectors = append(m.vectors, v)
	return v, nil
}

// Route is bus.Vector's.
func (v *Vector) Route(addr uint64, data uint32, masked bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.addr, v.data, v.masked = addr, data, masked
	v.routed++
	return nil
}

// Signal is bus.Vector's.
func (v *Vector) Signal() { _, _ = unix.Write(v.fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// EventFD is bus.Vector's.
func (v *Vector) EventFD() int { return v.fd }

// Close is bus.Vector's.
func (v *Vector) Close() error {
	if v.closed.Swap(true) {
		return errors.New("a vector is closed twice")
	}
	return unix.Close(v.fd)
}

// message returns the vector whose message is data, if it is not masked.
func (m *Machine) message(data uint32) *Vector {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range m.vectors {
		v.mu.Lock()
		hit := v.routed > 0 && v.data == data && !v.masked
		v.mu.Unlock()
		if hit {
			return v
		}
	}
	return nil
}

// Pending reports whether message data was sent since it was last awaited.
func (m *Machine) Pending(data uint32) bool { return m.await(data, 0) }

// Await waits until message data is sent.
func (m *Machine) Await(t testing.TB, data uint32) {
	t.Helper()
	if !m.await(data, Patience) {
		t.Fatalf("message %#x does not come", data)
	}
}

func (m *Machine) await(data uint32, patience time.Duration) bool {
	v := m.message(data)
	if v == nil {
		return false
	}
	fds := []unix.PollFd{{Fd: int32(v.fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(patience.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n <= 0 {
			return false
		}
		_, err = unix.Read(v.fd, make([]byte, 8))
		return err == nil
	}
}

// Bell is a doorbell without KVM: what is written arrives by the bus.
type Bell struct {
	m      *Machine
	fd     int
	addr   uint64
	mu     sync.Mutex
	closed atomic.Bool
}

// FailDoorbells makes NewDoorbell fail.
func (m *Machine) FailDoorbells(fail bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.noBells = fail
}

// NewDoorbell is bus.Doorbells'.
func (m *Machine) NewDoorbell(addr uint64, _ int, _ *uint64) (bus.Doorbell, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.noBells {
		return nil, errors.New("no doorbell is left")
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	m.bells++
	return &Bell{m: m, fd: fd, addr: addr}, nil
}

// FD is bus.Doorbell's.
func (b *Bell) FD() int { return b.fd }

// Wait is bus.Doorbell's.
func (b *Bell) Wait() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.closed.Load() {
		n, err := unix.Read(b.fd, make([]byte, 8))
		if n == 8 {
			return !b.closed.Load()
		}
		if !errors.Is(err, unix.EINTR) {
			return false
		}
	}
	return false
}

// Ring is bus.Doorbell's.
func (b *Bell) Ring() { _, _ = unix.Write(b.fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// Close is bus.Doorbell's.
func (b *Bell) Close() error {
	if b.closed.Swap(true) {
		return errors.New("a doorbell is closed twice")
	}
	b.Ring()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	b.m.bells--
	return unix.Close(b.fd)
}
