package virtio

import "sync"

// gate is where the workers of a device stand while it must be quiet.
type gate struct {
	mu     sync.Mutex
	change sync.Cond
	inside int
	shut   bool // no one may enter
	ended  bool // whoever wants to enter is to go home
}

func newGate() *gate {
	g := &gate{shut: true}
	g.change.L = &g.mu
	return g
}

// enter waits until the gate is open. It returns false when the workers are to
// end.
func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.shut && !g.ended {
		g.change.Wait()
	}
	if g.ended {
		return false
	}
	g.inside++
	return true
}

// hold is enter for what one who is inside begins: it never waits.
func (g *gate) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside++
}

// leave ends what enter or hold began.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.inside == 0 {
		g.change.Broadcast()
	}
}

// close returns when no one is inside, and no one comes in until open.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = true
	for g.inside > 0 {
		g.change.Wait()
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = false
	g.change.Broadcast()
}

// end sends the workers home, or (false) lets new ones work.
func (g *gate) end(yes bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = yes
	g.change.Broadcast()
}
