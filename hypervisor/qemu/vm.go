package qemu

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/cmdline"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/proc"
)

// VM is an open QEMU VM. Beside hypervisor.VM it offers hypervisor.Mapper
// (where the memory is shared), Pauser, RegisterReader and Live.
type VM struct {
	log     *slog.Logger
	timeout time.Duration
	noQMP   bool

	p       *proc.Process
	cfg     *cmdline.Config
	info    hypervisor.Info
	mem     *os.File // /proc/PID/mem
	blocks  []*backing
	extents []placement // sorted
	ranges  []hypervisor.Range

	mu     sync.RWMutex // held for reading by every method, for writing by Close
	closed bool
	qmp    sync.Mutex // one exchange of ours at a time
}

var (
	_ hypervisor.VM             = (*VM)(nil)
	_ hypervisor.Mapper         = (*VM)(nil)
	_ hypervisor.Pauser         = (*VM)(nil)
	_ hypervisor.RegisterReader = (*VM)(nil)
	_ hypervisor.Live           = (*VM)(nil)
)

// setLayout takes over a located layout.
func (vm *VM) setLayout(l *layout, runs [][]proc.VMA) error {
	for i, b := range l.blocks {
		back, err := openBacking(vm.p, vm.mem, runs[i], b.hva, b.size)
		if err != nil {
			return err
		}
		if back.file == nil && back.why != "" {
			vm.log.Debug("no view of memory", "pid", vm.p.PID, "block", i, "remedy", back.why)
		}
		vm.blocks = append(vm.blocks, back)
	}
	vm.extents = l.places
	rs := make([]hypervisor.Range, 0, len(l.places))
	for _, e := range l.places {
		rs = append(rs, hypervisor.Range{Start: e.gpa, Size: e.size})
	}
	var err error
	vm.ranges, err = hypervisor.NormalizeRanges(rs)
	return err
}

// enter takes a method in; leave lets it out.
func (vm *VM) enter() error {
	vm.mu.RLock()
	if vm.closed {
		vm.mu.RUnlock()
		return fmt.Errorf("qemu pid %d: %w", vm.info.PID, hypervisor.ErrClosed)
	}
	if err := vm.p.Check(); err != nil {
		vm.mu.RUnlock()
		return err
	}
	return nil
}

func (vm *VM) leave() { vm.mu.RUnlock() }

// extent returns the extent that holds gpa.
func (vm *VM) extent(gpa hypervisor.PhysAddr) (placement, bool) {
	i, ok := slices.BinarySearchFunc(vm.extents, gpa, func(e placement, a hypervisor.PhysAddr) int {
		switch {
		case e.gpa > a:
			return 1
		case uint64(a-e.gpa) >= e.size:
			return -1
		}
		return 0
	})
	if !ok {
		return placement{}, false
	}
	return vm.extents[i], true
}

// ReadPhys reads guest memory: see hypervisor.Memory, and the package
// documentation for what happens when the VM ends.
func (vm *VM) ReadPhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	if err := vm.enter(); err != nil {
		return 0, err
	}
	defer vm.leave()
	done := 0
	for done < len(p) {
		at := gpa + hypervisor.PhysAddr(done)
		e, ok := vm.extent(at)
		if !ok || at < gpa { // a hole, or around the end of the address space
			return done, &hypervisor.AddressError{Op: "read", Addr: at, Err: hypervisor.ErrNotRAM}
		}
		in := uint64(at - e.gpa)
		want := p[done:]
		if uint64(len(want)) > e.size-in {
			want = want[:e.size-in]
		}
		n, err := vm.blocks[e.block].read(want, e.off+in)
		done += n
		if errors.Is(err, hypervisor.ErrGone) {
			return done, err
		}
		if err != nil {
			return done, &hypervisor.AddressError{Op: "read", Addr: gpa + hypervisor.PhysAddr(done), Err: err}
		}
	}
	return done, nil
}

// Ranges returns the guest's RAM: see the package documentation.
func (vm *VM) Ranges() []hypervisor.Range { return vm.ranges }

// MapPhys returns a live view of guest memory where the VM's memory backend is
// shared, else a *hypervisor.NotSupportedError that says how to make it so.
//
// Reading a page of the view that the guest has never touched makes the host
// allocate it, which ReadPhys does not. Should the backend's file be truncated
// while the view is in use, reading the view faults (SIGBUS), as it does in
// QEMU itself; ReadPhys returns an error then.
func (vm *VM) MapPhys(gpa hypervisor.PhysAddr, limit uint64) ([]byte, error) {
	if err := vm.enter(); err != nil {
		return nil, err
	}
	defer vm.leave()
	e, ok := vm.extent(gpa)
	if !ok {
		return nil, &hypervisor.AddressError{Op: "map", Addr: gpa, Err: hypervisor.ErrNotRAM}
	}
	view, err := vm.blocks[e.block].mapped()
	if err != nil {
		var no *hypervisor.NotSupportedError
		if errors.As(err, &no) {
			return nil, err
		}
		return nil, &hypervisor.AddressError{Op: "map", Addr: gpa, Err: err}
	}
	in := uint64(gpa - e.gpa)
	n := min(limit, e.size-in)
	lo := e.off + in
	return view[lo : lo+n : lo+n], nil
}

// IsLive returns true: the guest may run.
func (vm *VM) IsLive() bool { return true }

// Close lets go of the VM, which runs on as it was; a VM that was paused stays
// paused. It waits for methods that are under way.
func (vm *VM) Close() error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.closed {
		return nil
	}
	vm.closed = true
	return vm.release()
}

func (vm *VM) release() error {
	var errs []error
	for _, b := range vm.blocks {
		errs = append(errs, b.close())
	}
	if vm.mem != nil {
		errs = append(errs, vm.mem.Close())
	}
	return errors.Join(append(errs, vm.p.Close())...)
}
