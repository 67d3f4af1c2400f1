package linux

import (
	"errors"
	"fmt"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
)

// maxUptime is the longest uptime that is believed.
const maxUptime = 200 * 365 * 24 * time.Hour

// clockFields is where the facts of the timekeeper lie.
type clockFields struct {
	offsReal, offsBoot, clock field // in struct timekeeper
	inData                    field // the timekeeper in struct tk_data, since 6.13
	// Offsets of the timekeeper in the variable that holds it, the likeliest
	// first. Until 6.12 that variable's struct had no name, so its layout is
	// told by its members: a sequence counter and the timekeeper.
	offsets []uint64
}

func (c *clockFields) facts() []fact {
	return []fact{
		{&c.offsReal, 8, want, []string{"timekeeper.offs_real"}},
		{&c.offsBoot, 8, want, []string{"timekeeper.offs_boot"}},
		{&c.clock, 8, may, []string{"timekeeper.tkr_mono.clock"}},
		{&c.inData, 0, may, []string{"tk_data.timekeeper"}},
	}
}

func (c *clockFields) finish(t types) {
	if c.inData.ok {
		c.offsets = []uint64{c.inData.off}
		return
	}
	for _, name := range []string{"seqcount_raw_spinlock_t", "seqcount_raw_spinlock", "seqcount_t", "seqcount"} {
		if n, err := t.Size(name); err == nil && n > 0 && n < 256 {
			c.offsets = append(c.offsets, (n+7)&^7)
		}
	}
	c.offsets = append(c.offsets, 8, 64)
}

// errNoClock is returned when the guest's idea of the time was not found.
var errNoClock = errors.New("timekeeper not found")

// bootTime returns when the guest booted, by its own clock, in UTC: what
// getboottime64 (kernel/time/timekeeping.c) computes. A guest that sets its
// clock moves it.
func (g *Guest) bootTime() (time.Time, error) {
	f := &g.lay.clock
	if g.sym.timekeeper == 0 {
		return time.Time{}, fmt.Errorf("%w: %w", errNoClock, profile.ErrNoSymbol)
	}
	if !f.offsReal.ok || !f.offsBoot.ok {
		return time.Time{}, fmt.Errorf("%w: %w", errNoClock, profile.ErrNoType)
	}
	last := errNoClock
	for _, off := range f.offsets {
		t, err := g.bootTimeAt(g.sym.timekeeper + hypervisor.VirtAddr(off))
		if err == nil {
			return t, nil
		}
		last = fmt.Errorf("%w: %w", errNoClock, err)
	}
	return time.Time{}, last
}

// bootTimeAt reads the boot time from the struct timekeeper at tk.
func (g *Guest) bootTimeAt(tk hypervisor.VirtAddr) (time.Time, error) {
	f := &g.lay.clock
	sp := spanOf(f.offsReal, f.offsBoot, f.clock)
	var before time.Duration
	// On a live guest the clock may be set in the middle of a read: until two
	// reads say the same.
	for i := range liveRounds {
		o, _, err := g.r.object(nil, tk, sp)
		if err != nil {
			return time.Time{}, err
		}
		if f.clock.ok {
			if err := g.r.check(tk, o.ptr(f.clock), 8); err != nil {
				return time.Time{}, fmt.Errorf("clock source: %w", err)
			}
		}
		boot := time.Duration(o.uint(f.offsReal) - o.uint(f.offsBoot))
		if boot < 0 {
			return time.Time{}, fmt.Errorf("%w: booted %v before 1970", ErrTorn, -boot)
		}
		if i > 0 && boot == before || !hypervisor.IsLive(g.mem) {
			return time.Unix(0, int64(boot)).UTC(), nil
		}
		before = boot
	}
	return time.Unix(0, int64(before)).UTC(), nil
}
