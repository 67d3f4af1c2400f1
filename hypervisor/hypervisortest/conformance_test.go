package hypervisortest

import (
	"bytes"
	"errors"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

func newTestFake() *Fake {
	f := NewFake(
		hypervisor.Range{Start: 0, Size: 0xa0000},
		hypervisor.Range{Start: 0x100000, Size: 2<<20 + 100},
		hypervisor.Range{Start: 1 << 32, Size: 1 << 20},
	)
	for _, r := range f.ranges {
		p := make([]byte, r.Size)
		for i := range p {
			p[i] = byte(i>>8 ^ i ^ int(r.Start>>12))
		}
		f.Store(r.Start, p)
	}
	return f
}

func TestFakeConforms(t *testing.T) {
	cs := []Capability{CanAll}
	for c := CanNothing; c <= CanLook; c++ {
		cs = append(cs, c)
	}
	for _, c := range cs {
		t.Run("", func(t *testing.T) {
			truth := newTestFake()
			var f *Fake
			Conformance(t, Config{
				Open: func(testing.TB) hypervisor.VM {
					f = newTestFake()
					f.SetVCPUs(hypervisor.Registers{Valid: hypervisor.GroupGeneral, RFLAGS: 2}, hypervisor.Registers{VCPU: 1, Valid: hypervisor.GroupGeneral, RFLAGS: 2})
					if c&CanPause != 0 {
						f.SetLive(true)
						f.SetInfo(func(i *hypervisor.Info) { i.State = hypervisor.StateRunning })
					}
					return f.VM(c)
				},
				Ranges:    []hypervisor.Range{{Start: 0, Size: 0xa0000}, {Start: 0x100000, Size: 2<<20 + 100}, {Start: 1 << 32, Size: 1 << 20}},
				ReadTruth: func(p []byte, gpa hypervisor.PhysAddr) error { copy(p, truth.Load(gpa, uint64(len(p)))); return nil },
				Want:      c,
				Lacks:     CanAll &^ c,
				Scratch:   hypervisor.Range{Start: 0x1000, Size: 5000},
				GuestWrite: func(p []byte, gpa hypervisor.PhysAddr) error {
					f.GuestWrite(p, gpa)
					return nil
				},
			})
		})
	}
}

func TestFakeFailsWhatItIsTold(t *testing.T) {
	f := newTestFake()
	boom := errors.New("boom")
	f.Fail(
		Failure{Method: MethodReadPhys, Nth: 2, Err: boom},
		Failure{Method: MethodReadPhys, Range: hypervisor.Range{Start: 0x2000, Size: 0x1000}, Err: hypervisor.ErrUnreadable},
		Failure{Method: MethodPause, Err: hypervisor.ErrBusy},
	)
	vm := f.VM(CanAll)
	p := make([]byte, 0x1000)
	if n, err := vm.ReadPhys(p, 0); n != 0x1000 || err != nil {
		t.Errorf("first read = %d, %v", n, err)
	}
	if n, err := vm.ReadPhys(p, 0); n != 0 || !errors.Is(err, boom) {
		t.Errorf("second read = %d, %v; want boom", n, err)
	}
	n, err := vm.ReadPhys(p, 0x1800)
	var at *hypervisor.AddressError
	if n != 0x800 || !errors.Is(err, hypervisor.ErrUnreadable) || !errors.As(err, &at) || at.Addr != 0x2000 {
		t.Errorf("read into the bad page = %d, %v", n, err)
	}
	if !bytes.Equal(p[:0x800], f.Load(0x1800, 0x800)) {
		t.Error("bytes before the bad page are wrong")
	}
	if n, err := vm.ReadPhys(p, 0x3000); n != 0x1000 || err != nil {
		t.Errorf("read behind the bad page = %d, %v", n, err)
	}
	if err := f.Pause(t.Context()); !errors.Is(err, hypervisor.ErrBusy) {
		t.Errorf("Pause = %v", err)
	}
	f.FailNone()
	if err := f.Pause(t.Context()); err != nil {
		t.Errorf("Pause = %v", err)
	}
	if got := f.Count(MethodReadPhys); got != 4 {
		t.Errorf("%d reads counted, want 4", got)
	}
	if c := f.Calls(); len(c) != 6 || c[2] != (Call{MethodReadPhys, 0x1800, 0x1000}) {
		t.Errorf("calls: %v", c)
	}
}
