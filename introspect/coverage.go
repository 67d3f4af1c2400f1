// Package introspect holds what every guest operating system's introspection
// has in common. The semantics of one guest system live below it
// (introspect/linux); the translation of addresses in introspect/paging.
//
// This package and those below it must not import a driver
// (hypervisor/qemu, …), nor scanner, policy, firewall, node or cmd: they see a
// guest through the capabilities of package hypervisor only.
package introspect

import (
	"fmt"
	"sync"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// MaxProblems is how many problems a Coverage keeps in full; the rest are
// counted only, so that a hostile guest cannot fill the host's memory.
const MaxProblems = 64

// Problem is one thing that a walk could not read or did not believe.
type Problem struct {
	What string              `json:"what"`           // what was walked: "tasks list", "mm of pid 12"
	Addr hypervisor.VirtAddr `json:"addr,omitempty"` // where, 0 when it has no address
	Err  string              `json:"error"`
}

func (p Problem) String() string {
	if p.Addr == 0 {
		return p.What + ": " + p.Err
	}
	return fmt.Sprintf("%s at %#x: %s", p.What, uint64(p.Addr), p.Err)
}

// Coverage says what a walk could not read. The zero value is complete and
// ready for use; it is safe for concurrent use.
type Coverage struct {
	mu       sync.Mutex
	problems []Problem
	total    int
}

// Add notes a problem. err must not be nil.
func (c *Coverage) Add(what string, addr hypervisor.VirtAddr, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total++
	if len(c.problems) < MaxProblems {
		c.problems = append(c.problems, Problem{What: what, Addr: addr, Err: err.Error()})
	}
}

// Merge adds what src missed, which may be nil, to c.
func (c *Coverage) Merge(src *Coverage) {
	if src == nil {
		return
	}
	problems, total := src.Problems(), src.Total() // before c's lock: src may be c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total += total
	room := min(MaxProblems-len(c.problems), len(problems))
	c.problems = append(c.problems, problems[:room]...)
}

// Complete reports whether nothing was missed.
func (c *Coverage) Complete() bool { return c.Total() == 0 }

// Total returns how many problems there were, those not kept included.
func (c *Coverage) Total() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.total
}

// Problems returns the first MaxProblems problems, in the order they were met.
func (c *Coverage) Problems() []Problem {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Problem(nil), c.problems...)
}
