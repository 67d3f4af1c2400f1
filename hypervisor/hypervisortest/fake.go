package hypervisortest

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Methods of a fake VM, as Call and Failure name them.
const (
	MethodInfo      = "Info"
	MethodRanges    = "Ranges"
	MethodReadPhys  = "ReadPhys"
	MethodMapPhys   = "MapPhys"
	MethodWritePhys = "WritePhys"
	MethodPause     = "Pause"
	MethodResume    = "Resume"
	MethodState     = "State"
	MethodRegisters = "Registers"
	MethodClose     = "Close"

	MethodSetRegisters = "SetRegisters"
	MethodSetTrap      = "SetTrap"
	MethodRemoveTrap   = "RemoveTrap"
	MethodStartDirty   = "StartDirty"
	MethodDirty        = "Dirty"
	MethodStopDirty    = "StopDirty"
)

// maxCalls is how many calls are kept; more are counted only.
const maxCalls = 1 << 16

// Call is one call of a fake VM's method.
type Call struct {
	Method string
	Addr   hypervisor.PhysAddr // of ReadPhys, MapPhys, WritePhys
	Size   uint64              // of these: bytes asked for
}

// Failure makes calls fail. Its zero fields match anything.
type Failure struct {
	Method string // "": any method that can fail
	// Nth is the call of Method that fails, counted from 1 and from when the fake
	// was made (see Count); 0: all of them.
	Nth int
	// Range is which addresses fail: a read that reaches into it gives the bytes
	// before it and then Err. A Size of 0: whatever the address.
	Range hypervisor.Range
	Err   error // what the call returns; for memory it is wrapped in an *AddressError
}

// Fake is a VM in memory. VM gives the handle that code under test sees; the
// other methods are for the test, and reach memory without being recorded. It
// is safe for concurrent use.
type Fake struct {
	mu       sync.Mutex
	info     hypervisor.Info
	live     bool
	ranges   []hypervisor.Range
	memory   [][]byte // of each range
	regs     []hypervisor.Registers
	calls    []Call
	counts   map[string]int
	failures []Failure
	closed   bool
	traps    fakeTraps
	dirty    map[hypervisor.Frame]bool // nil: not tracked
}

// NewFake returns a VM with zeroed RAM at ranges. It panics when they overlap:
// that is a mistake in the test.
func NewFake(ranges ...hypervisor.Range) *Fake {
	return NewFakeOn(make([]byte, hypervisor.TotalSize(ranges)), ranges...)
}

// NewFakeOn is NewFake with RAM that others see too: memory holds the ranges, one
// behind the other.
func NewFakeOn(memory []byte, ranges ...hypervisor.Range) *Fake {
	rs, err := hypervisor.NormalizeRanges(ranges)
	if err != nil {
		panic("hypervisortest.NewFake: " + err.Error())
	}
	f := &Fake{ranges: rs, counts: make(map[string]int), info: hypervisor.Info{
		Name: "fake", URI: "fake:fake", Driver: "fake",
		State: hypervisor.StateStatic, MemoryBytes: hypervisor.TotalSize(rs),
	}}
	for _, r := range rs {
		f.memory = append(f.memory, memory[:r.Size:r.Size])
		memory = memory[r.Size:]
	}
	return f
}

// SetInfo changes what Info returns.
func (f *Fake) SetInfo(change func(*hypervisor.Info)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.info)
}

// SetLive sets what IsLive returns.
func (f *Fake) SetLive(live bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.live = live
}

// SetVCPUs sets the vCPUs' registers, and their number in Info.
func (f *Fake) SetVCPUs(regs ...hypervisor.Registers) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.regs, f.info.VCPUs = slices.Clone(regs), len(regs)
}

// Store writes p at gpa. It panics when that is not RAM.
func (f *Fake) Store(gpa hypervisor.PhysAddr, p []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.at(gpa)
	if len(b) < len(p) {
		panic(fmt.Sprintf("hypervisortest.Fake.Store: %d bytes at gpa %v are not all RAM", len(p), gpa))
	}
	copy(b, p)
}

// Load returns a copy of size bytes at gpa. It panics when that is not RAM.
func (f *Fake) Load(gpa hypervisor.PhysAddr, size uint64) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.at(gpa)
	if uint64(len(b)) < size {
		panic(fmt.Sprintf("hypervisortest.Fake.Load: %d bytes at gpa %v are not all RAM", size, gpa))
	}
	return slices.Clone(b[:size])
}

// Fail makes calls fail from now on. The first Failure that matches a call counts.
func (f *Fake) Fail(failures ...Failure) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failures = append(f.failures, failures...)
}

// FailNone takes back every Fail.
func (f *Fake) FailNone() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failures = nil
}

// Calls returns the first calls that were made, 65,536 at most.
func (f *Fake) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Count returns how often method was called.
func (f *Fake) Count(method string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[method]
}

// at returns the RAM from gpa on to the end of its range; nil where there is none.
func (f *Fake) at(gpa hypervisor.PhysAddr) []byte {
	for i, r := range f.ranges {
		if r.Contains(gpa) {
			return f.memory[i][gpa-r.Start:]
		}
	}
	return nil
}

// record notes a call, and returns how it is to fail: from which byte on (of
// calls with an address), and with what.
func (f *Fake) record(c Call) (good uint64, err error) {
	f.counts[c.Method]++
	if len(f.calls) < maxCalls {
		f.calls = append(f.calls, c)
	}
	if f.closed && c.Method != MethodClose {
		return 0, hypervisor.ErrClosed
	}
	for _, x := range f.failures {
		if x.Method != "" && x.Method != c.Method || x.Nth != 0 && x.Nth != f.counts[c.Method] {
			continue
		}
		if x.Range.Size == 0 {
			return 0, x.Err
		}
		switch {
		case x.Range.Contains(c.Addr):
			return 0, x.Err
		case c.Addr < x.Range.Start && uint64(x.Range.Start-c.Addr) < c.Size:
			return uint64(x.Range.Start - c.Addr), x.Err
		}
	}
	return c.Size, nil
}

// access does ReadPhys and WritePhys: do gets the RAM of a part of the call.
func (f *Fake) access(method, op string, size int, gpa hypervisor.PhysAddr, do func(done int, ram []byte) int) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	good, err := f.record(Call{Method: method, Addr: gpa, Size: uint64(size)})
	if f.closed {
		return 0, fmt.Errorf("%s gpa %#x: %w", op, uint64(gpa), err)
	}
	n := 0
	for uint64(n) < good {
		at := gpa + hypervisor.PhysAddr(n)
		ram := f.at(at)
		if ram == nil || at < gpa {
			return n, &hypervisor.AddressError{Op: op, Addr: at, Err: hypervisor.ErrNotRAM}
		}
		n += do(n, ram[:min(uint64(len(ram)), good-uint64(n))])
	}
	if err != nil {
		return n, &hypervisor.AddressError{Op: op, Addr: gpa + hypervisor.PhysAddr(n), Err: err}
	}
	return n, nil
}

// Info implements hypervisor.VM.
func (f *Fake) Info() hypervisor.Info {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, _ = f.record(Call{Method: MethodInfo})
	return f.info
}

// Ranges implements hypervisor.Memory.
func (f *Fake) Ranges() []hypervisor.Range {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, _ = f.record(Call{Method: MethodRanges})
	return f.ranges
}

// IsLive implements hypervisor.Live.
func (f *Fake) IsLive() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.live
}

// ReadPhys implements hypervisor.Memory.
func (f *Fake) ReadPhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	return f.access(MethodReadPhys, "read", len(p), gpa, func(done int, ram []byte) int { return copy(p[done:], ram) })
}

// WritePhys implements hypervisor.Writer.
func (f *Fake) WritePhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	return f.access(MethodWritePhys, "write", len(p), gpa, func(done int, ram []byte) int { return copy(ram, p[done:]) })
}

// MapPhys implements hypervisor.Mapper.
func (f *Fake) MapPhys(gpa hypervisor.PhysAddr, limit uint64) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	good, err := f.record(Call{Method: MethodMapPhys, Addr: gpa, Size: limit})
	if f.closed {
		return nil, fmt.Errorf("map gpa %#x: %w", uint64(gpa), err)
	}
	ram := f.at(gpa)
	switch {
	case good == 0 && err != nil:
		return nil, &hypervisor.AddressError{Op: "map", Addr: gpa, Err: err}
	case ram == nil:
		return nil, &hypervisor.AddressError{Op: "map", Addr: gpa, Err: hypervisor.ErrNotRAM}
	}
	n := min(good, uint64(len(ram)))
	return ram[:n:n], nil
}

// simple does a call that has no address.
func (f *Fake) simple(ctx context.Context, method string, do func()) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.record(Call{Method: method}); err != nil {
		return fmt.Errorf("fake %s: %w", method, err)
	}
	do()
	return nil
}

// Pause implements hypervisor.Pauser.
func (f *Fake) Pause(ctx context.Context) error {
	return f.simple(ctx, MethodPause, func() { f.info.State = hypervisor.StatePaused })
}

// Resume implements hypervisor.Pauser.
func (f *Fake) Resume(ctx context.Context) error {
	return f.simple(ctx, MethodResume, func() { f.info.State = hypervisor.StateRunning })
}

// State implements hypervisor.Pauser.
func (f *Fake) State(ctx context.Context) (s hypervisor.State, err error) {
	err = f.simple(ctx, MethodState, func() { s = f.info.State })
	return s, err
}

// Registers implements hypervisor.RegisterReader.
func (f *Fake) Registers(ctx context.Context) (regs []hypervisor.Registers, err error) {
	err = f.simple(ctx, MethodRegisters, func() { regs = slices.Clone(f.regs) })
	return regs, err
}

// Close implements hypervisor.VM.
func (f *Fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.record(Call{Method: MethodClose})
	f.closed = true
	return err
}
