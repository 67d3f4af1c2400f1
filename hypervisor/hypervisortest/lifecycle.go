package hypervisortest

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

func testPause(t *testing.T, _ Config, vm hypervisor.VM) {
	p, err := hypervisor.As[hypervisor.Pauser](vm)
	if err != nil {
		t.Log(err)
		return
	}
	ctx := t.Context()
	for _, step := range []struct {
		name string
		do   func(context.Context) error
		want hypervisor.State
	}{
		{"Pause", p.Pause, hypervisor.StatePaused},
		{"Pause again", p.Pause, hypervisor.StatePaused},
		{"Resume", p.Resume, hypervisor.StateRunning},
		{"Resume again", p.Resume, hypervisor.StateRunning},
	} {
		if err := step.do(ctx); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if s, err := p.State(ctx); s != step.want || err != nil {
			t.Errorf("State after %s = %s, %v; want %s", step.name, s, err, step.want)
		}
		if s := vm.Info().State; s != step.want {
			t.Errorf("Info().State after %s = %s, want %s", step.name, s, step.want)
		}
	}
}

func testConcurrent(t *testing.T, _ Config, vm hypervisor.VM) {
	rs := vm.Ranges()
	m, _ := vm.(hypervisor.Mapper)
	var wg sync.WaitGroup
	for g := range uint64(6) {
		wg.Go(func() {
			samples(rs, 10+g, func(gpa hypervisor.PhysAddr, size int) {
				size = min(size, 70_000)
				if n, err := vm.ReadPhys(make([]byte, size), gpa); n != size || err != nil {
					t.Errorf("ReadPhys(%d bytes, %v) = %d, %v", size, gpa, n, err)
				}
				if m != nil {
					if _, err := m.MapPhys(gpa, uint64(size)); err != nil {
						t.Errorf("MapPhys(%v, %d): %v", gpa, size, err)
					}
				}
				_ = vm.Ranges()
			})
			_ = vm.Info()
		})
	}
	wg.Wait()
}

func testClose(t *testing.T, cfg Config, vm hypervisor.VM) {
	// Close under readers: each read is good, or says that the handle is closed.
	start := vm.Ranges()[0].Start
	began := make(chan struct{}, 4)
	var wg sync.WaitGroup
	for range cap(began) {
		wg.Go(func() {
			p := make([]byte, 4096)
			for i := 0; ; i++ {
				n, err := vm.ReadPhys(p[:min(4096, vm.Ranges()[0].Size)], start)
				if i == 0 {
					began <- struct{}{}
				}
				if errors.Is(err, hypervisor.ErrClosed) && n == 0 {
					return
				} else if err != nil {
					t.Errorf("ReadPhys during Close = %d, %v", n, err)
					return
				}
			}
		})
	}
	for range cap(began) {
		<-began
	}
	if err := vm.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	wg.Wait()
	if err := vm.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if n, err := vm.ReadPhys(make([]byte, 1), start); n != 0 || !errors.Is(err, hypervisor.ErrClosed) {
		t.Errorf("ReadPhys after Close = %d, %v; want ErrClosed", n, err)
	}
	if m, ok := vm.(hypervisor.Mapper); ok {
		if _, err := m.MapPhys(start, 1); !errors.Is(err, hypervisor.ErrClosed) {
			t.Errorf("MapPhys after Close = %v, want ErrClosed", err)
		}
	}
	if w, ok := vm.(hypervisor.Writer); ok {
		if _, err := w.WritePhys([]byte{0}, start); !errors.Is(err, hypervisor.ErrClosed) {
			t.Errorf("WritePhys after Close = %v, want ErrClosed", err)
		}
	}
	if r, ok := vm.(hypervisor.RegisterReader); ok {
		if _, err := r.Registers(t.Context()); !errors.Is(err, hypervisor.ErrClosed) {
			t.Errorf("Registers after Close = %v, want ErrClosed", err)
		}
	}
	if p, ok := vm.(hypervisor.Pauser); ok {
		if err := p.Pause(t.Context()); !errors.Is(err, hypervisor.ErrClosed) {
			t.Errorf("Pause after Close = %v, want ErrClosed", err)
		}
	}
	if r, ok := vm.(hypervisor.RegisterWriter); ok {
		if err := r.SetRegisters(t.Context(), hypervisor.Registers{}); !errors.Is(err, hypervisor.ErrClosed) {
			t.Errorf("SetRegisters after Close = %v, want ErrClosed", err)
		}
	}
	if tr, ok := vm.(hypervisor.Trapper); ok {
		if _, err := tr.SetTrap(t.Context(), hypervisor.Trap{Kind: hypervisor.TrapShutdown}, nil); !errors.Is(err, hypervisor.ErrClosed) {
			t.Errorf("SetTrap after Close = %v, want ErrClosed", err)
		}
	}
	if d, ok := vm.(hypervisor.DirtyTracker); ok {
		if err := d.StartDirty(t.Context()); !errors.Is(err, hypervisor.ErrClosed) {
			t.Errorf("StartDirty after Close = %v, want ErrClosed", err)
		}
	}
	if vm.Info().Name == "" {
		t.Error("Info after Close is empty")
	}
	before := openFiles(t)
	for range 8 {
		if err := cfg.Open(t).Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d file descriptors before 8 times Open and Close, %d after", before, after)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	es, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(es)
}
