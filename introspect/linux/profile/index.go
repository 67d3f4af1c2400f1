package profile

import (
	"iter"
	"slices"

	"github.com/zeebo/xxh3"
)

// nameIndex finds what has a name: 32 bits of the name's hash and a number, in
// one sorted word each. It is sorted, not a hash table, so that a guest that
// makes names collide makes a lookup linear, and nothing quadratic.
type nameIndex struct{ entries []uint64 }

func indexEntry(hash uint64, n uint32) uint64 { return hash&^0xffff_ffff | uint64(n) }

// newNameIndex takes over entries, which are in order of their numbers.
func newNameIndex(entries []uint64) *nameIndex {
	return &nameIndex{sortByHash(entries)}
}

// candidates yields, in ascending order, the numbers of what may have name.
func (x *nameIndex) candidates(name string) iter.Seq[uint32] {
	want := indexEntry(xxh3.HashString(name), 0)
	i, _ := slices.BinarySearch(x.entries, want)
	return func(yield func(uint32) bool) {
		for _, e := range x.entries[i:] {
			if e&^0xffff_ffff != want || !yield(uint32(e)) {
				return
			}
		}
	}
}

// sortByHash sorts entries by their upper half, stably: a radix sort in three
// passes, several times as fast as comparing.
func sortByHash(a []uint64) []uint64 {
	const bits = 11
	b := make([]uint64, len(a))
	for shift := 32; shift < 64; shift += bits {
		var count [1 << bits]int
		for _, v := range a {
			count[v>>shift&(1<<bits-1)]++
		}
		sum := 0
		for i, n := range count {
			count[i] = sum
			sum += n
		}
		for _, v := range a {
			d := v >> shift & (1<<bits - 1)
			b[count[d]] = v
			count[d]++
		}
		a, b = b, a
	}
	return a
}
