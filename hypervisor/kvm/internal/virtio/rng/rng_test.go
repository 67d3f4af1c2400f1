package rng_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/rng"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/virtiotest"
)

func TestBytes(t *testing.T) {
	m := virtiotest.New(t)
	_, d := m.Attach(t, rng.New(rng.Options{}))
	d.Start(t, ^uint64(0), 1, 64)
	at := m.Mem.Alloc(t, 8192)
	b := m.Mem.Bytes(t, at, 8192)
	if n := d.Queues[0].Do(t, virtiotest.Buffer{Addr: at, Len: 64, Write: true}); n != 64 {
		t.Fatalf("%d bytes, want 64", n)
	}
	if bytes.Equal(b[:32], make([]byte, 32)) || bytes.Equal(b[:32], b[32:64]) {
		t.Error("these are no random bytes")
	}
	if !bytes.Equal(b[64:], make([]byte, 8192-64)) {
		t.Error("more was written than asked for")
	}
	// As much as it likes to give, but something.
	if n := d.Queues[0].Do(t, virtiotest.Buffer{Addr: at, Len: 8192, Write: true}); n == 0 || n > 8192 {
		t.Errorf("%d bytes of 8192", n)
	}
	if n := d.Queues[0].Do(t, virtiotest.Buffer{Addr: at, Len: 8}); n != 0 {
		t.Errorf("%d bytes into a buffer to read", n)
	}
}

// A guest that asks without end is held back, and can be stopped meanwhile.
func TestRate(t *testing.T) {
	m := virtiotest.New(t)
	dev, d := m.Attach(t, rng.New(rng.Options{Rate: 32 << 10}))
	d.Start(t, ^uint64(0), 1, 64)
	at := m.Mem.Alloc(t, 4096)
	begin := time.Now()
	for range 4 {
		d.Queues[0].Do(t, virtiotest.Buffer{Addr: at, Len: 4096, Write: true})
	}
	if took := time.Since(begin); took < 200*time.Millisecond {
		t.Errorf("16 KiB at 32 KiB/s took %v", took)
	}
	dev.Quiesce()
	dev.Resume()
	d.Reset(t)
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("no entropy") }

func TestNoSource(t *testing.T) {
	m := virtiotest.New(t)
	_, d := m.Attach(t, rng.New(rng.Options{Source: broken{}}))
	d.Start(t, ^uint64(0), 1, 64)
	d.Queues[0].Add(t, virtiotest.Buffer{Addr: m.Mem.Alloc(t, 64), Len: 64, Write: true})
	d.Queues[0].Kick()
	virtiotest.Eventually(t, "DEVICE_NEEDS_RESET", func() bool { return d.Status() == 0x4f })
}
