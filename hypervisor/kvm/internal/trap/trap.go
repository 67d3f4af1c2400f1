package trap

import (
	"sync"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// trap is one that is set.
type trap struct {
	hypervisor.Trap
	id      hypervisor.TrapID
	handler hypervisor.TrapHandler
	first   hypervisor.Frame // of page and breakpoint
	last    hypervisor.Frame

	mu      sync.Mutex
	gone    bool
	running int           // handlers
	idle    chan struct{} // closed when gone and none runs
	second  time.Time     // when the current second of MaxRate began
	told    int           // in that second
	dropped uint64
}

// admit reports whether the trap is to be told of an event now. Who gets true
// calls leave.
func (t *trap) admit() (ok bool, dropped uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone {
		return false, 0
	}
	if t.MaxRate > 0 {
		if now := time.Now(); now.Sub(t.second) >= time.Second {
			t.second, t.told = now, 0
		}
		if t.told >= t.MaxRate {
			t.dropped++
			return false, 0
		}
		t.told++
	}
	t.running++
	dropped, t.dropped = t.dropped, 0
	return true, dropped
}

func (t *trap) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running--
	if t.gone && t.running == 0 {
		close(t.idle)
	}
}

// end lets no more events in. idle is closed when the handlers that run are done.
func (t *trap) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone {
		return
	}
	t.gone = true
	t.idle = make(chan struct{})
	if t.running == 0 {
		close(t.idle)
	}
}

// count is the number of MSRs or ports.
func (t *trap) count() uint32 { return max(t.Count, 1) }

// covers reports whether any of n bytes at gpa are watched for access a.
func (t *trap) covers(a hypervisor.Access, gpa hypervisor.PhysAddr, n int) bool {
	return t.Access&a != 0 && gpa < t.Addr+hypervisor.PhysAddr(t.Size) && t.Addr < gpa+hypervisor.PhysAddr(n)
}
