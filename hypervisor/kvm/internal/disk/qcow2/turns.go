package qcow2

import "sync/atomic"

// turns tells when requests that began before some moment are over: each is of
// the turn that was on when it began. There are two, so a turn can only begin
// when the one before the last is over.
type turns struct {
	now    atomic.Int64
	active [2]atomic.Int64
}

func (t *turns) enter() int {
	for {
		now := t.now.Load()
		t.active[now&1].Add(1)
		if t.now.Load() == now {
			return int(now & 1)
		}
		t.active[now&1].Add(-1)
	}
}

func (t *turns) leave(turn int) { t.active[turn].Add(-1) }

// over reports whether all requests of the turn before this one have ended.
func (t *turns) over() bool { return t.active[(t.now.Load()+1)&1].Load() == 0 }

// next begins a turn. over was true.
func (t *turns) next() { t.now.Add(1) }
