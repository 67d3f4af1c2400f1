// Package controltest is a machine without a processor, for tests of those who
// serve machines and of their clients: its RAM is a real memfd, all else is
// hypervisortest's fake.
//
// It is for tests only.
package controltest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/hypervisortest"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/control"
)

// Machine is a fake machine. Its embedded fake's Fire and GuestWrite are what its
// guest does.
type Machine struct {
	*hypervisortest.Fake
	file   *os.File
	memory []byte

	// Done is closed by Stop.
	Done chan struct{}

	mu       sync.Mutex
	holds    int
	presses  int
	resets   int
	balloon  uint64
	stopOnce sync.Once
}

var _ control.Machine = (*Machine)(nil)

// New returns a running machine with two vCPUs, that is unmapped at the end of t.
func New(t testing.TB, name string, ranges ...hypervisor.Range) *Machine {
	t.Helper()
	if len(ranges) == 0 {
		ranges = []hypervisor.Range{{Start: 0, Size: 2 << 20}, {Start: 1 << 32, Size: 1 << 20}}
	}
	fd, err := unix.MemfdCreate("controltest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	m := &Machine{file: os.NewFile(uintptr(fd), "memfd"), Done: make(chan struct{})}
	t.Cleanup(func() { m.file.Close() })
	size := int64(hypervisor.TotalSize(ranges))
	if err := m.file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		t.Fatal(err)
	}
	if m.memory, err = unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(m.memory); err != nil {
			t.Error(err)
		}
	})
	for i := range m.memory {
		m.memory[i] = byte(i>>12 ^ i>>3)
	}
	m.Fake = hypervisortest.NewFakeOn(m.memory, ranges...)
	m.SetInfo(func(i *hypervisor.Info) {
		*i = hypervisor.Info{Name: name, URI: "kvm:" + name, Driver: "kvm", State: hypervisor.StateRunning, MemoryBytes: uint64(size), PID: os.Getpid()}
	})
	const valid = hypervisor.GroupGeneral | hypervisor.GroupSegments | hypervisor.GroupControl | hypervisor.GroupMSR
	m.SetVCPUs(
		hypervisor.Registers{Valid: valid, RFLAGS: 2, RAX: 1, LSTAR: 0xffff_ffff_8100_0000},
		hypervisor.Registers{VCPU: 1, Valid: valid, RFLAGS: 2, RAX: 2, CR0: 0x11},
	)
	m.SetLive(true)
	return m
}

// MemoryFile is control.Machine's.
func (m *Machine) MemoryFile() *os.File { return m.file }

// Hold is control.Machine's.
func (m *Machine) Hold(ctx context.Context) (func(), error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.holds++
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.holds--
	}), nil
}

// Holds returns how many holds there are.
func (m *Machine) Holds() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.holds
}

// PowerButton is control.Machine's.
func (m *Machine) PowerButton() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.presses++
	return nil
}

// Presses returns how often the power button was pressed, and Resets how often
// the machine was reset.
func (m *Machine) Presses() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.presses
}

// Reset is control.Machine's.
func (m *Machine) Reset(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.resets++
	return nil
}

// Resets returns how often the machine was reset.
func (m *Machine) Resets() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.resets
}

// Stop is control.Machine's.
func (m *Machine) Stop() { m.stopOnce.Do(func() { close(m.Done) }) }

// SetBalloon is control.Machine's: sizes that are not of whole pages are refused.
func (m *Machine) SetBalloon(_ context.Context, size uint64) error {
	if size%hypervisor.PageSize != 0 {
		return &hypervisor.NotSupportedError{What: "half a page", Driver: "kvm", Remedy: "whole pages"}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.balloon = size
	return nil
}

// Balloon returns what SetBalloon has set.
func (m *Machine) Balloon() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.balloon
}

// Names of the files of a save.
const (
	SavedMemory = "memory"
	SavedState  = "state.json"
)

// Save is control.Machine's: RAM as it is, and the registers as JSON; with a
// parent, only whether that is there and has as much.
func (m *Machine) Save(ctx context.Context, to, parent control.Folder, progress func(control.SaveProgress)) (err error) {
	if parent != nil {
		f, err := parent.Open(SavedMemory)
		if err != nil {
			return err
		}
		defer f.Close()
		if n, err := io.Copy(io.Discard, f); err != nil || n != int64(len(m.memory)) {
			return fmt.Errorf("parent: %d bytes: %w", n, errors.Join(err, errors.New("another machine's")))
		}
	}
	mem, err := to.Create(SavedMemory)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mem.Close()) }()
	total := uint64(len(m.memory))
	for done := uint64(0); done < total; done += 1 << 20 {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if _, err := mem.Write(m.memory[done:min(done+1<<20, total)]); err != nil {
			return err
		}
		progress(control.SaveProgress{Done: min(done+1<<20, total), Total: total})
	}
	regs, err := m.Registers(ctx)
	if err != nil {
		return err
	}
	b, err := json.Marshal(regs)
	if err != nil {
		return err
	}
	state, err := to.Create(SavedState)
	if err != nil {
		return err
	}
	_, err = state.Write(b)
	return errors.Join(err, state.Close())
}
