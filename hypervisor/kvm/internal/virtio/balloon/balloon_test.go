package balloon_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/balloon"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/virtiotest"
)

var le = binary.LittleEndian

// memory notes what it is given back.
type memory struct {
	mu   sync.Mutex
	back []string
}

func (m *memory) Discard(gpa hypervisor.PhysAddr, size uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.back = append(m.back, fmt.Sprintf("%#x+%#x", uint64(gpa), size))
	return nil
}

func (m *memory) take() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.back
	m.back = nil
	return b
}

func attach(t *testing.T) (*virtiotest.Machine, *balloon.Device, *memory, *virtiotest.Driver) {
	m, mem := virtiotest.New(t), &memory{}
	b, err := balloon.New(mem, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	_, d := m.Attach(t, b)
	return m, b, mem, d
}

func TestInflate(t *testing.T) {
	m, b, mem, d := attach(t)
	d.Start(t, ^uint64(0), 4, 128)
	if err := b.SetTarget(1 << 20); err != nil {
		t.Fatal(err)
	}
	m.Await(t, virtiotest.Message(d.Slot, 0))
	if n := virtiotest.Read(&m.MMIO, d.Device, 4); n != 256 {
		t.Errorf("num_pages %d, want 256", n)
	}
	at := m.Mem.Alloc(t, 4096)
	frames := []uint32{10, 11, 12, 9, 8, 40, 39, 38, 100, 0xffff_ffff}
	for i, f := range frames {
		le.PutUint32(m.Mem.Bytes(t, at+uint64(4*i), 4), f)
	}
	d.Queues[0].Do(t, virtiotest.Buffer{Addr: at, Len: 4*len(frames) + 3})
	if got, want := mem.take(), []string{"0x8000+0x5000", "0x26000+0x3000", "0x64000+0x1000", "0xffffffff000+0x1000"}; !slices.Equal(got, want) {
		t.Errorf("given back %q, want %q", got, want)
	}
	d.Queues[1].Do(t, virtiotest.Buffer{Addr: at, Len: 40})
	if got := mem.take(); got != nil {
		t.Errorf("given back by deflating: %q", got)
	}
	virtiotest.Write(&m.MMIO, d.Device+4, 4, 77)
	if n := b.Actual(); n != 77<<12 {
		t.Errorf("Actual %d", n)
	}
	virtiotest.Write(&m.MMIO, d.Device, 4, 1) // which is not the guest's
	if n := virtiotest.Read(&m.MMIO, d.Device, 4); n != 256 {
		t.Errorf("the guest has set num_pages to %d", n)
	}
	if err := b.SetTarget(65 << 20); err == nil {
		t.Error("a balloon larger than the guest")
	}
}

func TestReporting(t *testing.T) {
	for _, stats := range []uint64{0, 1 << 1} { // the queue has another number then
		m, _, mem, d := attach(t)
		d.Start(t, ^uint64(1<<1)|stats, 4, 128)
		q := d.Queues[2+int(stats>>1)]
		at := m.Mem.Alloc(t, 1<<20)
		q.Do(t, virtiotest.Buffer{Addr: at, Len: 1 << 19, Write: true}, virtiotest.Buffer{Addr: at + 1<<19 + 100, Len: 3 * 4096, Write: true})
		want := []string{fmt.Sprintf("%#x+0x80000", at), fmt.Sprintf("%#x+0x2000", at+1<<19+4096)}
		if got := mem.take(); !slices.Equal(got, want) {
			t.Errorf("given back %q, want %q", got, want)
		}
	}
}

func TestStats(t *testing.T) {
	m, b, _, d := attach(t)
	if _, err := b.Stats(t.Context()); !errors.Is(err, hypervisor.ErrNotSupported) {
		t.Errorf("without a driver: %v", err)
	}
	d.Start(t, ^uint64(0), 4, 128)
	q := d.Queues[2]
	at := m.Mem.Alloc(t, 4096)
	offer := func(free uint64) {
		for i, s := range []struct {
			tag   uint16
			value uint64
		}{{0xfff0, 9}, {4, free}, {5, 1 << 30}, {3, 17}} {
			le.PutUint16(m.Mem.Bytes(t, at+uint64(10*i), 2), s.tag)
			le.PutUint64(m.Mem.Bytes(t, at+uint64(10*i)+2, 8), s.value)
		}
		q.Add(t, virtiotest.Buffer{Addr: at, Len: 40})
		q.Kick()
	}
	offer(111)
	for _, free := range []uint64{222, 333} {
		done := make(chan error, 1)
		go func() {
			s, err := b.Stats(t.Context())
			if err == nil && (s.Free != free || s.Total != 1<<30 || s.MinorFaults != 17) {
				err = fmt.Errorf("statistics %+v, want free %d", s, free)
			}
			done <- err
		}()
		q.Await(t) // the question
		offer(free)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := b.Stats(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("of a guest that does not answer: %v", err)
	}
}

func TestState(t *testing.T) {
	m, b, _, d := attach(t)
	if err := b.SetTarget(4 << 20); err != nil {
		t.Fatal(err)
	}
	d.Start(t, ^uint64(0), 4, 128)
	virtiotest.Write(&m.MMIO, d.Device+4, 4, 1000)
	s, err := b.State()
	if err != nil {
		t.Fatal(err)
	}
	_, other, _, _ := attach(t)
	if err := other.SetState(s); err != nil {
		t.Fatal(err)
	}
	if other.Actual() != 1000<<12 {
		t.Errorf("Actual %d", other.Actual())
	}
	for _, bad := range []string{"", "[]", `{"pages":16385}`, `{"pages":-1}`} {
		if other.SetState([]byte(bad)) == nil {
			t.Errorf("state %q is taken", bad)
		}
	}
}
