package kvm

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// VM is an open machine. Beside hypervisor.VM it offers all capabilities that
// package hypervisor names, but Identified.
type VM struct {
	name    string
	timeout time.Duration
	c       *conn
	process *os.File // a pidfd; nil: the process cannot be seen
	memory  []byte
	ranges  []hypervisor.Range

	mu     sync.RWMutex // held for reading by who uses memory, for writing by Close
	closed bool

	infoMu sync.Mutex
	info   hypervisor.Info // as it was known last

	traps  traps
	events events
	tokens tokens
}

var (
	_ hypervisor.VM             = (*VM)(nil)
	_ hypervisor.Mapper         = (*VM)(nil)
	_ hypervisor.Writer         = (*VM)(nil)
	_ hypervisor.Pauser         = (*VM)(nil)
	_ hypervisor.RegisterReader = (*VM)(nil)
	_ hypervisor.RegisterWriter = (*VM)(nil)
	_ hypervisor.Trapper        = (*VM)(nil)
	_ hypervisor.DirtyTracker   = (*VM)(nil)
	_ hypervisor.Live           = (*VM)(nil)
	_ hypervisor.Holder         = (*VM)(nil)
	_ hypervisor.Switch         = (*VM)(nil)
	_ hypervisor.Saver          = (*VM)(nil)
	_ hypervisor.Ballooner      = (*VM)(nil)
	_ hypervisor.Notifier       = (*VM)(nil)
)

// newVM takes over c. What the machine says of itself is checked: for root it may
// be any user's.
func newVM(d *Driver, c *conn, name, uri string) (_ *VM, err error) {
	vm := &VM{name: name, timeout: d.timeout, c: c}
	defer c.memory.Close()
	defer func() {
		if err != nil {
			c.close()
			err = fmt.Errorf("VM %s: %w", name, err)
		}
	}()
	if vm.ranges, err = hypervisor.NormalizeRanges(c.welcome.Ranges); err != nil {
		return nil, err
	}
	if vm.memory, err = mapMemory(c.memory, vm.ranges); err != nil {
		return nil, err
	}
	vm.info = c.welcome.Info
	vm.info.Name, vm.info.URI, vm.info.Driver = name, uri, DriverName
	vm.info.PID, vm.info.MemoryBytes = c.pid, hypervisor.TotalSize(vm.ranges)
	if fd, err := unix.PidfdOpen(c.pid, 0); err == nil {
		vm.process = os.NewFile(uintptr(fd), "pidfd")
	}
	vm.events.init()
	c.onEvent(vm.events.tell)
	return vm, nil
}

// mapMemory maps a guest's memory. Where it has huge pages its file cannot be sealed
// against getting smaller, so that a machine that was broken into could take it away
// under us: whoever reads a view does so under hypervisor.Guard.
func mapMemory(f *os.File, ranges []hypervisor.Range) ([]byte, error) {
	size := hypervisor.TotalSize(ranges)
	if size == 0 || size > math.MaxInt64 {
		return nil, fmt.Errorf("guest memory of %d bytes", size)
	}
	for _, r := range ranges {
		if r.Start.Offset() != 0 || r.Size%hypervisor.PageSize != 0 {
			return nil, fmt.Errorf("guest memory: range %v is not of whole pages", r)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		return nil, errors.Join(errors.New("guest memory: not a file in the host's memory"), err)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("guest memory: %w", err)
	}
	if !st.Mode().IsRegular() || uint64(st.Size()) != size {
		return nil, fmt.Errorf("guest memory: a file of %d bytes for %d bytes of RAM", st.Size(), size)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map guest memory of %d bytes: %w", size, err)
	}
	_ = unix.Madvise(b, unix.MADV_DONTDUMP) // a core of ours is not the guest's
	return b, nil
}

// enter takes a method in that uses the memory; leave lets it out.
func (vm *VM) enter() error {
	vm.mu.RLock()
	err := vm.c.ended()
	if vm.closed {
		err = hypervisor.ErrClosed
	}
	if err != nil {
		vm.mu.RUnlock()
		return fmt.Errorf("VM %s: %w", vm.name, err)
	}
	return nil
}

func (vm *VM) leave() { vm.mu.RUnlock() }

// view returns what is mapped from gpa to the end of its range.
func (vm *VM) view(gpa hypervisor.PhysAddr) []byte {
	var off uint64
	for _, r := range vm.ranges {
		if r.Contains(gpa) {
			return vm.memory[off+uint64(gpa-r.Start) : off+r.Size]
		}
		off += r.Size
	}
	return nil
}

// ReadPhys reads guest memory: see hypervisor.Memory. It asks no one.
func (vm *VM) ReadPhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	if err := vm.enter(); err != nil {
		return 0, err
	}
	defer vm.leave()
	done := 0
	for done < len(p) {
		at := gpa + hypervisor.PhysAddr(done)
		view := vm.view(at)
		if view == nil || at < gpa { // a hole, or around the end of the address space
			return done, &hypervisor.AddressError{Op: "read", Addr: at, Err: hypervisor.ErrNotRAM}
		}
		n, err := hypervisor.CopyView(p[done:], view)
		done += n
		if err != nil {
			return done, &hypervisor.AddressError{Op: "read", Addr: gpa + hypervisor.PhysAddr(done), Err: err}
		}
	}
	return done, nil
}

// Ranges returns the guest's RAM.
func (vm *VM) Ranges() []hypervisor.Range { return vm.ranges }

// MapPhys returns a view of guest memory. Reading a page of it that the guest has
// never touched makes the host allocate it.
func (vm *VM) MapPhys(gpa hypervisor.PhysAddr, limit uint64) ([]byte, error) {
	if err := vm.enter(); err != nil {
		return nil, err
	}
	defer vm.leave()
	view := vm.view(gpa)
	if view == nil {
		return nil, &hypervisor.AddressError{Op: "map", Addr: gpa, Err: hypervisor.ErrNotRAM}
	}
	n := min(limit, uint64(len(view)))
	return view[:n:n], nil
}

// IsLive returns true: the guest may run.
func (vm *VM) IsLive() bool { return true }

// Info returns what is known of the machine; its state is of the moment, where it
// answers.
func (vm *VM) Info() hypervisor.Info {
	ctx, cancel := context.WithTimeout(context.Background(), vm.timeout)
	defer cancel()
	state, err := vm.State(ctx)
	vm.infoMu.Lock()
	defer vm.infoMu.Unlock()
	if err == nil {
		vm.info.State = state
	} else if !errors.Is(err, hypervisor.ErrClosed) {
		vm.info.State = hypervisor.StateUnknown
	}
	return vm.info
}

// Close lets go of the machine, which runs on as it was; one that Pause has paused
// stays so. All traps and holds of this handle are gone when it returns. Handlers
// that run are waited for.
func (vm *VM) Close() error {
	vm.c.close()
	vm.traps.close()
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.closed {
		return nil
	}
	vm.closed = true
	if vm.process != nil {
		vm.process.Close()
	}
	return unix.Munmap(vm.memory)
}
