package net_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/net"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/virtiotest"
)

var (
	le = binary.LittleEndian
	be = binary.BigEndian

	guestMAC = [6]byte{0x52, 0x54, 0, 1, 2, 3}
	hostMAC  = [6]byte{0x52, 0x54, 0, 9, 9, 9}
)

// Features by number (linux/virtio_net.h).
const (
	csum      = 1 << 0
	guestCsum = 1 << 1
	guestTSO4 = 1 << 7
	hostTSO4  = 1 << 11
	mergeable = 1 << 15
)

type guest struct {
	*testing.T
	m   *virtiotest.Machine
	dev *virtio.Device
	d   *virtiotest.Driver
	net *net.Device
	w   *wire
}

func newGuest(t *testing.T) *guest {
	w := newWire(t)
	n, err := net.New(net.Options{Tap: w.tap, MAC: guestMAC, MTU: 1400})
	if err != nil {
		t.Fatal(err)
	}
	m := virtiotest.New(t)
	dev, d := m.Attach(t, n)
	return &guest{t, m, dev, d, n, w}
}

// frame is one of an unknown protocol.
func frame(to, from [6]byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	copy(b, to[:])
	copy(b[6:], from[:])
	be.PutUint16(b[12:], 0x88b5)
	return b
}

// bufferSize is that of the guest's buffers.
const bufferSize = 1526

// offer gives the device n buffers to receive in, and returns where each head's
// is.
func (g *guest) offer(n int) map[uint16]uint64 {
	at := map[uint16]uint64{}
	for range n {
		a := g.m.Mem.Alloc(g, bufferSize)
		at[g.d.Queues[0].Add(g, virtiotest.Buffer{Addr: a, Len: bufferSize, Write: true})] = a
	}
	g.d.Queues[0].Kick()
	return at
}

// receive returns the next packet that the guest gets, whose buffers it offers
// again.
func (g *guest) receive(at map[uint16]uint64) (header, frame []byte) {
	g.Helper()
	q := g.d.Queues[0]
	var p []byte
	var again []uint64
	take := func(head uint16, n uint32) {
		p = append(p, g.m.Mem.Bytes(g, at[head], int(n))...)
		again = append(again, at[head])
		delete(at, head)
	}
	head, n := q.Await(g)
	take(head, n)
	if len(p) < 12 {
		g.Fatalf("a packet of %d bytes", len(p))
	}
	for range le.Uint16(p[10:]) - 1 {
		head, n, ok := q.Take(g)
		if !ok {
			g.Fatalf("%d buffers are announced, and not there", le.Uint16(p[10:]))
		}
		take(head, n)
	}
	for _, a := range again {
		at[q.Add(g, virtiotest.Buffer{Addr: a, Len: bufferSize, Write: true})] = a
	}
	q.Kick()
	return p[:12], p[12:]
}

// send sends a packet of the guest's, in pieces.
func (g *guest) send(header [12]byte, frame []byte, pieces int) {
	g.Helper()
	p := append(header[:], frame...)
	a := g.m.Mem.Alloc(g, len(p))
	copy(g.m.Mem.Bytes(g, a, len(p)), p)
	var bufs []virtiotest.Buffer
	for i := range pieces {
		from, to := i*len(p)/pieces, (i+1)*len(p)/pieces
		bufs = append(bufs, virtiotest.Buffer{Addr: a + uint64(from), Len: to - from})
	}
	if n := g.d.Queues[1].Do(g, bufs...); n != 0 {
		g.Errorf("%d bytes were written to a packet to send", n)
	}
}

func TestReceive(t *testing.T) {
	for _, features := range []uint64{0, mergeable, mergeable | guestCsum | guestTSO4} {
		g := newGuest(t)
		g.d.Start(t, features|virtiotest.EventIndex, 3, 64)
		at := g.offer(60)
		for i := range 300 {
			want := frame(guestMAC, hostMAC, 60+i*4)
			g.w.send([10]byte{}, want)
			_, got := g.receive(at)
			if !bytes.Equal(got, want) {
				t.Fatalf("features %#x, packet %d: %d bytes, want %d", features, i, len(got), len(want))
			}
		}
	}
}

// segments is a TCP segment of IPv4 that is to be cut, with its header.
func segments(to, from [6]byte, n int) ([10]byte, []byte) {
	f := frame(to, from, 14+20+20+n)
	be.PutUint16(f[12:], 0x0800)
	ip := f[14:34]
	clear(ip)
	ip[0], ip[8], ip[9] = 0x45, 64, 6
	be.PutUint16(ip[2:], uint16(40+n))
	copy(ip[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(be.Uint16(ip[i:]))
	}
	be.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	tcp := f[34:54]
	clear(tcp)
	be.PutUint16(tcp, 1)
	be.PutUint16(tcp[2:], 2)
	tcp[12], tcp[13] = 5<<4, 0x10
	// The checksum of the pseudo header, which is what whoever finishes it expects.
	sum = 10<<8*2 + 1 + 2 + 6 + uint32(20+n)
	be.PutUint16(tcp[16:], uint16(sum+sum>>16))
	var h [10]byte
	h[0], h[1] = 1, 1 // needs checksum, TCPv4
	le.PutUint16(h[2:], 54)
	le.PutUint16(h[4:], 1300)
	le.PutUint16(h[6:], 34)
	le.PutUint16(h[8:], 16)
	return h, f
}

// Packets of many segments pass whole, over many buffers.
func TestSegments(t *testing.T) {
	g := newGuest(t)
	g.d.Start(t, ^uint64(0), 3, 64)
	at := g.offer(60)
	for range 10 {
		header, want := segments(guestMAC, hostMAC, 40000)
		g.w.send(header, want)
		h, got := g.receive(at)
		if !bytes.Equal(got, want) || h[1] != 1 || le.Uint16(h[4:]) != 1300 || le.Uint16(h[10:]) != (40054+12+1525)/1526 {
			t.Fatalf("%d bytes with header %x, want %d", len(got), h, len(want))
		}
	}
	header, want := segments(hostMAC, guestMAC, 50000)
	var h12 [12]byte
	copy(h12[:], header[:])
	g.send(h12, want, 17)
	h, got := g.w.receive(hostMAC)
	if !bytes.Equal(got, want) || h[1] != 1 || le.Uint16(h[4:]) != 1300 {
		t.Fatalf("%d bytes with header %x, want %d", len(got), h, len(want))
	}
}

// A packet for which there are too few buffers waits for more.
func TestFewBuffers(t *testing.T) {
	g := newGuest(t)
	g.d.Start(t, ^uint64(0), 3, 64)
	at := g.offer(10)
	header, want := segments(guestMAC, hostMAC, 40000)
	g.w.send(header, want)
	g.w.send([10]byte{}, frame(guestMAC, hostMAC, 100))
	// Its first part has come when the buffers have its header.
	virtiotest.Eventually(t, "some of it", func() bool { return g.m.Mem.Bytes(t, at[0], 2)[1] == 1 })
	if _, _, ok := g.d.Queues[0].Take(t); ok {
		t.Fatal("a part of a packet is delivered")
	}
	for h, a := range g.offer(30) {
		at[h] = a
	}
	if _, got := g.receive(at); !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, want %d", len(got), len(want))
	}
	if _, got := g.receive(at); len(got) != 100 {
		t.Fatalf("%d bytes, want 100", len(got))
	}
}

// A driver that takes no offloads gets the segments one by one, and whole.
func TestNoOffloads(t *testing.T) {
	g := newGuest(t)
	g.d.Start(t, mergeable, 3, 64)
	at := g.offer(60)
	header, want := segments(guestMAC, hostMAC, 13000)
	g.w.send(header, want)
	for i := range 10 {
		h, got := g.receive(at)
		if h[0]&1 != 0 || h[1] != 0 || !bytes.Equal(got[54:], want[54+1300*i:][:1300]) {
			t.Fatalf("segment %d: header %x, %d bytes", i, h, len(got))
		}
	}
}

func TestTransmit(t *testing.T) {
	g := newGuest(t)
	g.d.Start(t, ^uint64(0), 3, 64)
	for i := range 300 {
		want := frame(hostMAC, guestMAC, 60+4*i)
		mark := g.m.Mem.Mark()
		g.send([12]byte{}, want, 1+i%5)
		g.m.Mem.Release(mark)
		if _, got := g.w.receive(hostMAC); !bytes.Equal(got, want) {
			t.Fatalf("packet %d: %d bytes, want %d", i, len(got), len(want))
		}
	}
	// What the tap refuses, and what is too long, is lost, and nothing else.
	bad := [12]byte{1, 1, 0xff, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff}
	g.send(bad, frame(hostMAC, guestMAC, 1000), 2)
	g.send([12]byte{}, frame(hostMAC, guestMAC, 70000), 2)
	g.send([12]byte{}, nil, 1)
	want := frame(hostMAC, guestMAC, 100)
	g.send([12]byte{}, want, 2)
	if _, got := g.w.receive(hostMAC); !bytes.Equal(got, want) {
		t.Error("another packet than the last one")
	}
}

// command gives the device a command and returns its answer.
func (g *guest) command(class, cmd byte, data []byte) byte {
	g.Helper()
	a := g.m.Mem.Alloc(g, 2+len(data)+1)
	b := g.m.Mem.Bytes(g, a, 2+len(data)+1)
	b[0], b[1], b[len(b)-1] = class, cmd, 0xee
	copy(b[2:], data)
	g.d.Queues[2].Do(g, virtiotest.Buffer{Addr: a, Len: 2}, virtiotest.Buffer{Addr: a + 2, Len: len(data)},
		virtiotest.Buffer{Addr: a + 2 + uint64(len(data)), Len: 1, Write: true})
	return b[len(b)-1]
}

func TestFilter(t *testing.T) {
	g := newGuest(t)
	g.d.Start(t, ^uint64(0), 3, 64)
	at := g.offer(60)
	other, multi, all := [6]byte{0x52, 1, 1, 1, 1, 1}, [6]byte{1, 0, 0x5e, 1, 1, 1}, [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	table := func(uni, multi [][6]byte) []byte {
		var b []byte
		for _, list := range [][][6]byte{uni, multi} {
			b = le.AppendUint32(b, uint32(len(list)))
			for _, m := range list {
				b = append(b, m[:]...)
			}
		}
		return b
	}
	many := make([][6]byte, 65)
	for _, step := range []struct {
		class, cmd byte
		data       []byte
		answer     byte
		pass       string // of own, other, multicast, broadcast
	}{
		{0, 0, []byte{1}, 0, "ooob"}, // as after a reset
		{0, 0, []byte{0}, 0, "o  b"},
		{0, 1, []byte{1}, 0, "o ob"},
		{0, 1, []byte{0}, 0, "o  b"},
		{1, 0, table([][6]byte{other}, nil), 0, "oo b"},
		{1, 0, table(nil, [][6]byte{multi}), 0, "o ob"},
		{1, 0, table(many, nil), 0, "oo b"},
		{1, 0, table(nil, many), 0, "o ob"},
		{1, 0, table(nil, nil)[:7], 1, "o ob"},
		{1, 0, []byte{0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0}, 1, "o ob"},
		{1, 0, table(nil, nil), 0, "o  b"},
		{0, 5, []byte{1}, 0, "o   "},
		{0, 5, []byte{0}, 0, "o  b"},
		{0, 2, []byte{1}, 0, "oo b"},
		{0, 4, []byte{1}, 0, "   b"},
		{0, 4, []byte{0}, 0, "oo b"},
		{0, 2, []byte{0}, 0, "o  b"},
		{0, 6, []byte{1}, 1, "o  b"},
		{0, 0, nil, 1, "o  b"},
		{7, 0, []byte{1}, 1, "o  b"},
		{1, 1, other[:], 0, " o b"},
		{1, 1, other[:5], 1, " o b"},
	} {
		if a := g.command(step.class, step.cmd, step.data); a != step.answer {
			t.Fatalf("command %d/%d %x: answer %d, want %d", step.class, step.cmd, step.data, a, step.answer)
		}
		dropped := g.net.Dropped() + uint64(strings.Count(step.pass, " "))
		for _, to := range [][6]byte{guestMAC, other, multi, all} {
			g.w.send([10]byte{}, frame(to, hostMAC, 60))
		}
		for i, to := range [][6]byte{guestMAC, other, multi, all} {
			if step.pass[i] == ' ' {
				continue
			}
			if _, got := g.receive(at); [6]byte(got[:6]) != to {
				t.Fatalf("after command %d/%d %x a packet to %x passes, want %x", step.class, step.cmd, step.data, got[:6], to)
			}
		}
		virtiotest.Eventually(t, "the last packet", func() bool { return g.net.Dropped() == dropped })
	}
	if v := virtiotest.Read(&g.m.MMIO, g.d.Device, 6); v != 0x010101010152 {
		t.Errorf("address %#x after it was set", v)
	}
	g.d.Start(t, ^uint64(0), 3, 64)
	if v := virtiotest.Read(&g.m.MMIO, g.d.Device, 6); v != 0x030201005452 {
		t.Errorf("address %#x after a reset", v)
	}
}

func TestLink(t *testing.T) {
	g := newGuest(t)
	g.d.Start(t, ^uint64(0), 3, 64)
	at := g.offer(20)
	status := func() uint64 { return virtiotest.Read(&g.m.MMIO, g.d.Device+6, 2) }
	if status() != 1 || virtiotest.Read(&g.m.MMIO, g.d.Device+10, 2) != 1400 {
		t.Errorf("status %d", status())
	}
	g.net.SetLink(false)
	g.m.Await(t, virtiotest.Message(g.d.Slot, 0))
	if status() != 0 {
		t.Error("the link is up")
	}
	g.send([12]byte{}, frame(hostMAC, guestMAC, 77), 1)
	g.w.send([10]byte{}, frame(guestMAC, hostMAC, 77))
	virtiotest.Eventually(t, "the tap is read", func() bool { return g.net.Dropped() == 1 })
	g.net.SetLink(true)
	g.m.Await(t, virtiotest.Message(g.d.Slot, 0))
	in, out := frame(guestMAC, hostMAC, 99), frame(hostMAC, guestMAC, 99)
	g.send([12]byte{}, out, 1)
	g.w.send([10]byte{}, in)
	if _, got := g.receive(at); !bytes.Equal(got, in) {
		t.Error("a packet passed to the guest without a link")
	}
	if _, got := g.w.receive(hostMAC); !bytes.Equal(got, out) {
		t.Error("a packet passed from the guest without a link")
	}
}

// Bad buffers break the device, and the tap goes on for the next driver.
func TestBroken(t *testing.T) {
	g := newGuest(t)
	for i, bad := range [][]virtiotest.Buffer{
		{{Addr: 0x1000, Len: 11, Write: true}},
		{{Addr: 0x1000, Len: 2000}},
		{{Addr: 0x1000, Len: 11}},
		{{Addr: 0x1000, Len: 12}, {Addr: 0x1000, Len: 12, Write: true}},
		{{Addr: 0x1000, Len: 2}},
		{{Addr: 0x1000, Len: 1}, {Addr: 0x1000, Len: 1, Write: true}},
	} {
		g.d.Start(t, ^uint64(0), 3, 64)
		q := g.d.Queues[i/2]
		q.Add(t, bad...)
		q.Kick()
		virtiotest.Eventually(t, "DEVICE_NEEDS_RESET", func() bool { return g.d.Status() == 0x4f })
	}
	g.d.Start(t, ^uint64(0), 3, 64)
	at := g.offer(60)
	want := frame(guestMAC, hostMAC, 500)
	g.w.send([10]byte{}, want)
	if _, got := g.receive(at); !bytes.Equal(got, want) {
		t.Error("another packet")
	}
}

// Buffers that the device has in hand are the guest's in a saved state.
func TestState(t *testing.T) {
	g := newGuest(t)
	g.d.Start(t, ^uint64(0), 3, 64)
	at := g.offer(60)
	g.command(0, 0, []byte{0})
	want := frame(guestMAC, hostMAC, 500)
	g.w.send([10]byte{}, want)
	g.receive(at)
	for range 3 {
		g.dev.Quiesce()
		state, err := g.dev.SaveState()
		if err != nil {
			t.Fatal(err)
		}
		if err := g.dev.RestoreState(state); err != nil {
			t.Fatal(err)
		}
		g.dev.Resume()
		for range 5 {
			g.w.send([10]byte{}, want)
			if _, got := g.receive(at); !bytes.Equal(got, want) {
				t.Fatal("another packet")
			}
		}
	}
}

func TestTapRefused(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := net.New(net.Options{Tap: f}); err == nil || !strings.Contains(err.Error(), "not a tap") {
		t.Errorf("New on /dev/null: %v", err)
	}
}
