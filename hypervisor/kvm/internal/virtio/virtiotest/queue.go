package virtiotest

import (
	"sync/atomic"
	"testing"
	"time"
)

// Queue is the driver's side of a split virtqueue.
type Queue struct {
	d     *Driver
	Index int
	Size  int
	// Where its parts are.
	Desc, Avail, Used uint64

	free  []uint16
	next  uint16 // of the available ring
	seen  uint16 // of the used ring
	owned map[uint16][]uint16
	event bool
}

// Buffer is a piece of guest memory.
type Buffer struct {
	Addr  uint64
	Len   int
	Write bool // by the device
}

// AddQueue sets a queue up.
func (d *Driver) AddQueue(t testing.TB, i, size int) *Queue {
	t.Helper()
	d.Set(22, 2, uint64(i))
	if most := int(d.Get(24, 2)); most < size {
		t.Fatalf("queue %d has at most %d descriptors", i, most)
	}
	q := &Queue{d: d, Index: i, Size: size, owned: map[uint16][]uint16{}, event: d.Features&EventIndex != 0}
	q.Desc = d.M.Mem.Alloc(t, 16*size)
	q.Avail = d.M.Mem.Alloc(t, 6+2*size)
	q.Used = d.M.Mem.Alloc(t, 6+8*size)
	for _, part := range []struct {
		at uint64
		n  int
	}{{q.Desc, 16 * size}, {q.Avail, 6 + 2*size}, {q.Used, 6 + 8*size}} {
		clear(d.M.Mem.Bytes(t, part.at, part.n))
	}
	for j := range size {
		q.free = append(q.free, uint16(j))
	}
	d.Set(24, 2, uint64(size))
	if !d.NoMSIX {
		d.Set(26, 2, uint64(i+1))
		if v := d.Get(26, 2); v != uint64(i+1) {
			t.Fatalf("queue %d: vector %#x", i, v)
		}
	}
	d.Set(32, 4, q.Desc)
	d.Set(36, 4, q.Desc>>32)
	d.Set(40, 8, q.Avail)
	d.Set(48, 4, q.Used)
	d.Set(52, 4, q.Used>>32)
	d.Set(28, 2, 1)
	if d.Get(28, 2) != 1 {
		t.Fatalf("queue %d is not enabled", i)
	}
	d.Queues[i] = q
	return q
}

func (q *Queue) raw(t testing.TB, at uint64, n int) []byte { return q.d.M.Mem.Bytes(t, at, n) }

var order atomic.Uint32

func fence() { order.Add(1) }

// Describe writes a descriptor.
func (q *Queue) Describe(t testing.TB, table uint64, i int, addr uint64, n uint32, flags, next uint16) {
	b := q.raw(t, table+uint64(16*i), 16)
	le.PutUint64(b, addr)
	le.PutUint32(b[8:], n)
	le.PutUint16(b[12:], flags)
	le.PutUint16(b[14:], next)
}

// Add makes a chain available and returns its head. The device is not told.
func (q *Queue) Add(t testing.TB, bufs ...Buffer) uint16 {
	t.Helper()
	if len(bufs) > len(q.free) {
		t.Fatalf("queue %d: %d descriptors are free", q.Index, len(q.free))
	}
	ids := q.free[:len(bufs):len(bufs)]
	q.free = q.free[len(bufs):]
	for i, b := range bufs {
		flags, next := uint16(0), uint16(0)
		if b.Write {
			flags |= 2
		}
		if i+1 < len(bufs) {
			flags, next = flags|1, ids[i+1]
		}
		q.Describe(t, q.Desc, int(ids[i]), b.Addr, uint32(b.Len), flags, next)
	}
	q.owned[ids[0]] = ids
	q.Offer(t, ids[0])
	return ids[0]
}

// AddIndirect is Add with a table of its own.
func (q *Queue) AddIndirect(t testing.TB, bufs ...Buffer) uint16 {
	t.Helper()
	table := q.d.M.Mem.Alloc(t, 16*len(bufs))
	for i, b := range bufs {
		flags := uint16(0)
		if b.Write {
			flags |= 2
		}
		if i+1 < len(bufs) {
			flags |= 1
		}
		q.Describe(t, table, i, b.Addr, uint32(b.Len), flags, uint16(i+1))
	}
	id := q.free[0]
	q.free = q.free[1:]
	q.Describe(t, q.Desc, int(id), table, uint32(16*len(bufs)), 4, 0)
	q.owned[id] = []uint16{id}
	q.Offer(t, id)
	return id
}

// Offer puts a head into the available ring.
func (q *Queue) Offer(t testing.TB, head uint16) {
	le.PutUint16(q.raw(t, q.Avail+4+2*uint64(int(q.next)%q.Size), 2), head)
	q.next++
	fence()
	*word16(q.raw(t, q.Avail+2, 2)) = q.next
	fence()
}

// SetIndex sets the available ring's index, as a hostile guest does.
func (q *Queue) SetIndex(t testing.TB, v uint16) {
	fence()
	*word16(q.raw(t, q.Avail+2, 2)) = v
	fence()
}

// Wanted reports whether the device wants to be told of the last n chains.
func (q *Queue) Wanted(t testing.TB, n uint16) bool {
	fence()
	if !q.event {
		return *word16(q.raw(t, q.Used, 2))&1 == 0
	}
	event := *word16(q.raw(t, q.Used+4+8*uint64(q.Size), 2))
	return q.next-event-1 < n
}

// Kick tells the device.
func (q *Queue) Kick() {
	q.d.Set(22, 2, uint64(q.Index))
	off := q.d.Get(30, 2)
	Write(&q.d.M.MMIO, q.d.Notify+off*q.d.multiplier, 2, uint64(q.Index))
}

// Take returns the next chain that is used, if there is one.
func (q *Queue) Take(t testing.TB) (head uint16, n uint32, ok bool) {
	t.Helper()
	fence()
	if *word16(q.raw(t, q.Used+2, 2)) == q.seen {
		return 0, 0, false
	}
	fence()
	b := q.raw(t, q.Used+4+8*uint64(int(q.seen)%q.Size), 8)
	id := le.Uint32(b)
	ids, ok := q.owned[uint16(id)]
	if !ok || id > 0xffff {
		t.Fatalf("queue %d: the device gives back %d, which it does not have", q.Index, id)
	}
	delete(q.owned, uint16(id))
	q.free = append(q.free, ids...)
	q.seen++
	return uint16(id), le.Uint32(b[4:]), true
}

// Arm asks for an interrupt with the next chain that is used.
func (q *Queue) Arm(t testing.TB) {
	if q.event {
		*word16(q.raw(t, q.Avail+4+2*uint64(q.Size), 2)) = q.seen
	} else {
		*word16(q.raw(t, q.Avail, 2)) = 0
	}
	fence()
}

// Disarm asks for none.
func (q *Queue) Disarm(t testing.TB) {
	if q.event {
		*word16(q.raw(t, q.Avail+4+2*uint64(q.Size), 2)) = q.seen - 1
	} else {
		*word16(q.raw(t, q.Avail, 2)) = 1
	}
	fence()
}

// Await waits, by interrupts, until a chain is used.
func (q *Queue) Await(t testing.TB) (head uint16, n uint32) {
	t.Helper()
	for deadline := time.Now().Add(Patience); ; {
		if head, n, ok := q.Take(t); ok {
			return head, n
		}
		q.Arm(t)
		if head, n, ok := q.Take(t); ok {
			return head, n
		}
		if time.Now().After(deadline) {
			t.Fatalf("queue %d: the device does not answer (status %#x)", q.Index, q.d.Status())
		}
		if q.d.NoMSIX {
			q.awaitLine(t)
		} else {
			q.d.M.Await(t, Message(q.d.Slot, q.Index+1))
		}
	}
}

func (q *Queue) awaitLine(t testing.TB) {
	t.Helper()
	l := q.d.M.Line(uint32(16 + q.d.Slot%4))
	Eventually(t, "INTA", l.Level)
	if v := Read(&q.d.M.MMIO, q.d.ISR, 1); v&1 == 0 {
		t.Fatalf("INTA is raised, ISR says %#x", v)
	}
}

// Do adds a chain, kicks, waits for it and returns how much was written.
func (q *Queue) Do(t testing.TB, bufs ...Buffer) uint32 {
	t.Helper()
	head := q.Add(t, bufs...)
	q.Kick()
	got, n := q.Await(t)
	if got != head {
		t.Fatalf("queue %d: chain %d came back, not %d", q.Index, got, head)
	}
	return n
}

// Eventually waits for a condition that nothing can be waited for on.
func Eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(Patience); !f(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("it does not come: %s", what)
		}
	}
}
