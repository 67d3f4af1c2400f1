package scanner

import (
	"github.com/vantage-vmi/vantage/hypervisor"
)

// result is what came of an extent. It is relative to the extent's base, so
// that it holds for every extent of the same key.
type result struct {
	base  uint64 // of the extent that was scanned, which stats.problems are relative to
	hits  []hit  // in order of sets and rules
	stats readStats

	timedOut uint64 // pages of the own part that libyara gave up on
	ended    error  // why the extent was not scanned at all: ctx's error, or the VM's end
	cached   bool   // made from the cache
}

// hit is one rule that matched in an extent.
type hit struct {
	set, rule int
	matches   []match // in order of address, at most MaxStrings
	more      bool    // there are, or may be, more
}

// match is where a string matched.
type match struct {
	str    int // index in the rule's strings
	rel    uint64
	phys   hypervisor.PhysAddr
	length int
	data   []byte // at most MaxData
}

// size estimates how much memory a result holds, in matches.
func (r *result) size() int {
	n := 1
	for i := range r.hits {
		n += 1 + len(r.hits[i].matches)
	}
	return n
}
