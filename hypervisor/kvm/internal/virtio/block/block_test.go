package block_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/block"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/virtiotest"
)

var le = binary.LittleEndian

// memDisk is a disk in memory that can be slow and can fail.
type memDisk struct {
	mu      sync.Mutex
	data    []byte
	ro      bool
	fail    error
	delay   time.Duration
	barrier chan struct{} // when not nil, reads wait for it
	waiting int
	calls   []string
}

// bytes returns a copy of what is there.
func (d *memDisk) bytes(off, n int) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.data[off : off+n])
}

// took returns the calls since it was last asked.
func (d *memDisk) took() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.calls
	d.calls = nil
	return c
}

func (d *memDisk) setFail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = err
}

func (d *memDisk) Size() uint64   { return uint64(len(d.data)) }
func (d *memDisk) ReadOnly() bool { return d.ro }
func (d *memDisk) ID() string     { return "serial-7" }

func (d *memDisk) begin(call string) error {
	d.mu.Lock()
	if len(d.calls) < 1000 {
		d.calls = append(d.calls, call)
	}
	b, fail := d.barrier, d.fail
	if b != nil {
		d.waiting++
	}
	d.mu.Unlock()
	if b != nil {
		<-b
	}
	if d.delay != 0 {
		<-time.After(d.delay)
	}
	return fail
}

func (d *memDisk) each(iov [][]byte, off uint64, f func(disk, guest []byte)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, b := range iov {
		if off+uint64(len(b)) > d.Size() {
			return errors.New("the device let a request beyond the end through")
		}
		f(d.data[off:off+uint64(len(b))], b)
		off += uint64(len(b))
	}
	return nil
}

func (d *memDisk) ReadV(iov [][]byte, off uint64) error {
	if err := d.begin("read"); err != nil {
		return err
	}
	return d.each(iov, off, func(disk, guest []byte) { copy(guest, disk) })
}

func (d *memDisk) WriteV(iov [][]byte, off uint64) error {
	if d.ro {
		return errors.New("the device let a write to a read-only disk through")
	}
	if err := d.begin("write"); err != nil {
		return err
	}
	return d.each(iov, off, func(disk, guest []byte) { copy(disk, guest) })
}

func (d *memDisk) Flush() error {
	return d.begin("flush")
}

func (d *memDisk) Discard(off, n uint64) error {
	return d.begin(fmt.Sprintf("discard %d+%d", off, n))
}

func (d *memDisk) WriteZeroes(off, n uint64, unmap bool) error {
	if err := d.begin(fmt.Sprintf("zero %d+%d %v", off, n, unmap)); err != nil {
		return err
	}
	return d.each([][]byte{make([]byte, n)}, off, func(disk, zero []byte) { copy(disk, zero) })
}

// guest is a machine with a block device and its driver.
type guest struct {
	*testing.T
	m    *virtiotest.Machine
	dev  *virtio.Device
	d    *virtiotest.Driver
	disk *memDisk
}

func newGuest(t *testing.T, disk *memDisk, o block.Options) *guest {
	m := virtiotest.New(t)
	dev, d := m.Attach(t, block.New(disk, o))
	return &guest{t, m, dev, d, disk}
}

// request is one with its buffers.
type request struct {
	header, data, status uint64
	n                    int
	bufs                 []virtiotest.Buffer
}

// request makes one with its data in the given number of pieces.
func (g *guest) request(kind uint32, sector uint64, n, pieces int, read bool) *request {
	r := &request{header: g.m.Mem.Alloc(g, 16), status: g.m.Mem.Alloc(g, 1), n: n}
	h := g.m.Mem.Bytes(g, r.header, 16)
	le.PutUint32(h, kind)
	le.PutUint64(h[8:], sector)
	g.m.Mem.Bytes(g, r.status, 1)[0] = 0xee
	r.bufs = []virtiotest.Buffer{{Addr: r.header, Len: 16}}
	if n > 0 {
		r.data = g.m.Mem.Alloc(g, n)
		for i, left := 0, n; left > 0; i++ {
			k := left
			if i < pieces-1 {
				k = n / pieces
			}
			r.bufs = append(r.bufs, virtiotest.Buffer{Addr: r.data + uint64(n-left), Len: k, Write: read})
			left -= k
		}
	}
	r.bufs = append(r.bufs, virtiotest.Buffer{Addr: r.status, Len: 1, Write: true})
	return r
}

func (g *guest) result(r *request) byte { return g.m.Mem.Bytes(g, r.status, 1)[0] }

func (g *guest) do(q *virtiotest.Queue, r *request, want byte) {
	g.Helper()
	q.Do(g, r.bufs...)
	if s := g.result(r); s != want {
		g.Fatalf("status %d, want %d", s, want)
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

func TestReadWrite(t *testing.T) {
	for _, features := range []uint64{0, virtiotest.EventIndex, virtiotest.Indirect | virtiotest.EventIndex} {
		disk := &memDisk{data: random(1 << 20)}
		g := newGuest(t, disk, block.Options{Queues: 2})
		g.d.Start(t, ^uint64(0)&^(virtiotest.Indirect|virtiotest.EventIndex)|features, 2, 256)
		want := disk.bytes(0, 1<<20)
		for i := range 600 { // more than the ring's size: it wraps
			q, mark := g.d.Queues[i%2], g.m.Mem.Mark()
			n := 512 * (1 + rand.IntN(32))
			at := rand.IntN(len(want)/512 - 32)
			if rand.IntN(2) == 0 {
				r := g.request(0, uint64(at), n, 1+rand.IntN(4), true)
				if got := q.Do(t, r.bufs...); got != uint32(n+1) || g.result(r) != 0 {
					t.Fatalf("read: %d bytes written, status %d", got, g.result(r))
				}
				if !bytes.Equal(g.m.Mem.Bytes(t, r.data, n), want[at*512:][:n]) {
					t.Fatal("read other bytes than the disk has")
				}
				for _, at := range []uint64{r.data, r.status, q.Used} {
					virtiotest.Eventually(t, "word that a page was written", func() bool { return g.m.Mem.TakeDirty(at) })
				}
			} else {
				r := g.request(1, uint64(at), n, 1+rand.IntN(4), false)
				copy(g.m.Mem.Bytes(t, r.data, n), random(n))
				copy(want[at*512:], g.m.Mem.Bytes(t, r.data, n))
				g.do(q, r, 0)
			}
			g.m.Mem.Release(mark)
		}
		if !bytes.Equal(disk.bytes(0, 1<<20), want) {
			t.Error("the disk has other bytes than were written")
		}
	}
}

func TestIndirect(t *testing.T) {
	disk := &memDisk{data: random(1 << 20)}
	g := newGuest(t, disk, block.Options{})
	g.d.Start(t, ^uint64(0), 1, 256)
	// More buffers than the queue has descriptors, as Linux does it.
	r := g.request(0, 8, 512<<10, 600, true)
	g.d.Queues[0].AddIndirect(t, r.bufs...)
	g.d.Queues[0].Kick()
	if _, n := g.d.Queues[0].Await(t); n != 512<<10+1 || g.result(r) != 0 {
		t.Fatalf("%d bytes, status %d", n, g.result(r))
	}
	if !bytes.Equal(g.m.Mem.Bytes(t, r.data, r.n), disk.bytes(4096, r.n)) {
		t.Error("read other bytes than the disk has")
	}
}

func TestRequests(t *testing.T) {
	disk := &memDisk{data: random(1 << 20)}
	g := newGuest(t, disk, block.Options{})
	g.d.Start(t, ^uint64(0), 1, 256)
	q := g.d.Queues[0]
	g.do(q, g.request(4, 0, 0, 0, false), 0)
	if c := disk.took(); fmt.Sprint(c) != "[flush]" {
		t.Errorf("calls %q", c)
	}
	id := g.request(8, 0, 20, 1, true)
	g.do(q, id, 0)
	if got := g.m.Mem.Bytes(t, id.data, 20); string(got) != "serial-7"+string(make([]byte, 12)) {
		t.Errorf("ID %q", got)
	}
	ranges := func(kind uint32, want byte, rs ...[3]uint64) {
		t.Helper()
		r := g.request(kind, 0, 16*len(rs), 1, false)
		b := g.m.Mem.Bytes(t, r.data, 16*len(rs))
		for i, x := range rs {
			le.PutUint64(b[16*i:], x[0])
			le.PutUint32(b[16*i+8:], uint32(x[1]))
			le.PutUint32(b[16*i+12:], uint32(x[2]))
		}
		g.do(q, r, want)
	}
	disk.took()
	ranges(11, 0, [3]uint64{8, 16, 0}, [3]uint64{100, 1, 0})
	ranges(13, 0, [3]uint64{16, 8, 1}, [3]uint64{32, 8, 0})
	want := []string{"discard 4096+8192", "discard 51200+512", "zero 8192+4096 true", "zero 16384+4096 false"}
	if c := disk.took(); fmt.Sprint(c) != fmt.Sprint(want) {
		t.Errorf("calls %q, want %q", c, want)
	}
	if !bytes.Equal(disk.bytes(8192, 4096), make([]byte, 4096)) {
		t.Error("write zeroes leaves something")
	}
	ranges(11, 2, [3]uint64{8, 16, 1})               // a flag that a discard has not
	ranges(13, 2, [3]uint64{8, 16, 2})               // one that no one has
	ranges(11, 1, [3]uint64{2047, 2, 0})             // beyond the end
	ranges(13, 1, [3]uint64{1 << 60, 8, 0})          // far beyond
	ranges(13, 1, [3]uint64{0, 1<<32 - 1, 0})        // very long
	g.do(q, g.request(13, 0, 15, 1, false), 1)       // a piece of a range
	g.do(q, g.request(13, 0, 16*17, 1, false), 1)    // too many
	g.do(q, g.request(0, 2048, 512, 1, true), 1)     // reads and writes beyond the end
	g.do(q, g.request(1, 2047, 1024, 1, false), 1)   //
	g.do(q, g.request(0, 1<<63, 512, 1, true), 1)    // where bytes would wrap
	g.do(q, g.request(0, 1<<55-1, 512, 1, true), 1)  //
	g.do(q, g.request(0, 0, 511, 1, true), 1)        // not whole sectors
	g.do(q, g.request(8, 0, 19, 1, true), 1)         // no room for the ID
	g.do(q, g.request(77, 0, 512, 1, true), 2)       // no such request
	g.do(q, g.request(0, 0, 0, 0, true), 0)          // nothing
	if c := disk.took(); fmt.Sprint(c) != "[read]" { // the last one's
		t.Errorf("bad requests reached the disk: %q", c)
	}
	disk.setFail(errors.New("the disk fails"))
	g.do(q, g.request(0, 0, 512, 1, true), 1)
	g.do(q, g.request(4, 0, 0, 0, false), 1)
	disk.setFail(nil)
	g.do(q, g.request(0, 0, 512, 1, true), 0)
}

func TestReadOnly(t *testing.T) {
	disk := &memDisk{data: random(1 << 20), ro: true}
	g := newGuest(t, disk, block.Options{})
	if f := g.d.Offered(); f>>5&1 != 1 || f>>13&3 != 0 {
		t.Errorf("features %#x", f)
	}
	g.d.Start(t, ^uint64(0), 1, 256)
	q := g.d.Queues[0]
	g.do(q, g.request(1, 0, 512, 1, false), 1)
	g.do(q, g.request(11, 0, 16, 1, false), 1)
	g.do(q, g.request(13, 0, 16, 1, false), 1)
	g.do(q, g.request(4, 0, 0, 0, false), 0)
	g.do(q, g.request(0, 0, 512, 1, true), 0)
}

// Requests that take long are under way together, and none keeps the device from
// being quiet for good.
func TestInFlight(t *testing.T) {
	disk := &memDisk{data: random(1 << 20), delay: 2 * time.Millisecond}
	g := newGuest(t, disk, block.Options{})
	g.d.Start(t, ^uint64(0), 1, 256)
	q := g.d.Queues[0]
	g.do(q, g.request(0, 0, 512, 1, true), 0) // from now on it is known to be slow
	disk.mu.Lock()
	disk.barrier = make(chan struct{})
	disk.mu.Unlock()
	const n = 20
	var rs []*request
	for i := range n {
		r := g.request(0, uint64(i), 512, 1, true)
		q.Add(t, r.bufs...)
		rs = append(rs, r)
	}
	q.Kick()
	virtiotest.Eventually(t, "all requests under way", func() bool {
		disk.mu.Lock()
		defer disk.mu.Unlock()
		return disk.waiting == n
	})
	quiet := make(chan struct{})
	go func() {
		g.dev.Quiesce()
		close(quiet)
	}()
	select {
	case <-quiet:
		t.Error("quiet with requests under way")
	default:
	}
	close(disk.barrier)
	<-quiet
	for i, r := range rs {
		if g.result(r) != 0 || !bytes.Equal(g.m.Mem.Bytes(t, r.data, 512), disk.bytes(512*i, 512)) {
			t.Errorf("request %d was not done when the device was quiet", i)
		}
	}
	g.dev.Resume()
	for range n {
		q.Await(t)
	}
}

func TestConfig(t *testing.T) {
	g := newGuest(t, &memDisk{data: make([]byte, 3<<20)}, block.Options{Queues: 99})
	get := func(off uint64, n int) uint64 { return virtiotest.Read(&g.m.MMIO, g.d.Device+off, n) }
	if get(0, 8) != 6144 || get(12, 4) != 254 || get(20, 4) != 512 || get(34, 2) != block.MaxQueues || get(24, 1) != 3 {
		t.Errorf("capacity %d, seg_max %d, blk_size %d, queues %d", get(0, 8), get(12, 4), get(20, 4), get(34, 2))
	}
	virtiotest.Write(&g.m.MMIO, g.d.Device, 4, 1)
	if get(0, 4) != 6144 {
		t.Error("the guest has changed the capacity")
	}
}

// A request without room for its status breaks the device, until it is reset.
func TestBroken(t *testing.T) {
	disk := &memDisk{data: random(1 << 20)}
	g := newGuest(t, disk, block.Options{})
	for _, bad := range []func() []virtiotest.Buffer{
		func() []virtiotest.Buffer { r := g.request(0, 0, 0, 0, true); return r.bufs[:1] },
		func() []virtiotest.Buffer { r := g.request(0, 0, 0, 0, true); return r.bufs[1:] },
		func() []virtiotest.Buffer { r := g.request(0, 0, 0, 0, true); r.bufs[0].Len = 15; return r.bufs },
	} {
		g.d.Start(t, ^uint64(0), 1, 256)
		q := g.d.Queues[0]
		g.do(q, g.request(0, 0, 512, 1, true), 0)
		q.Add(t, bad()...)
		q.Kick()
		virtiotest.Eventually(t, "DEVICE_NEEDS_RESET", func() bool { return g.d.Status() == 0x4f })
		g.m.Await(t, virtiotest.Message(g.d.Slot, 0))
		disk.took()
		q.Add(t, g.request(0, 0, 512, 1, true).bufs...)
		q.Kick()
		g.dev.Quiesce()
		g.dev.Resume()
		if disk.took() != nil {
			t.Error("a broken device goes on")
		}
	}
}
