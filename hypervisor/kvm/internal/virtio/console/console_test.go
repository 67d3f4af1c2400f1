package console_test

import (
	"bytes"
	"strings"
	"sync"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/console"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/virtiotest"
)

// screen is a writer that can be slow.
type screen struct {
	mu    sync.Mutex
	text  bytes.Buffer
	stuck chan struct{} // when not nil, writes wait for it
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	c := s.stuck
	s.mu.Unlock()
	if c != nil {
		<-c
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func attach(t *testing.T, s *screen) (*virtiotest.Machine, *console.Device, *virtiotest.Driver, interface{ Quiesce() }) {
	m := virtiotest.New(t)
	c, err := console.New(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	dev, d := m.Attach(t, c)
	d.Start(t, ^uint64(0), 2, 64)
	return m, c, d, dev
}

func say(t *testing.T, m *virtiotest.Machine, d *virtiotest.Driver, text string) {
	at := m.Mem.Alloc(t, len(text))
	copy(m.Mem.Bytes(t, at, len(text)), text)
	half := len(text) / 2
	d.Queues[1].Add(t, virtiotest.Buffer{Addr: at, Len: half}, virtiotest.Buffer{Addr: at + uint64(half), Len: len(text) - half})
	d.Queues[1].Kick()
}

func TestOutput(t *testing.T) {
	s := &screen{}
	m, _, d, _ := attach(t, s)
	want := ""
	for i := range 200 {
		text := strings.Repeat(string(rune('a'+i%26)), 1+i)
		say(t, m, d, text)
		d.Queues[1].Await(t)
		want += text
	}
	virtiotest.Eventually(t, "all of the text", func() bool { return s.String() == want })
}

// A writer that blocks holds the guest's output back, and nothing else; nothing
// of it is lost or comes twice.
func TestStuck(t *testing.T) {
	s := &screen{stuck: make(chan struct{})}
	m, _, d, dev := attach(t, s)
	unstick := sync.OnceFunc(func() { close(s.stuck) })
	t.Cleanup(unstick)
	want := ""
	for i := range 30 {
		text := strings.Repeat(string(rune('A'+i%26)), 5000)
		say(t, m, d, text)
		want += text
	}
	virtiotest.Eventually(t, "some of it taken", func() bool {
		_, _, ok := d.Queues[1].Take(t)
		return ok
	})
	dev.Quiesce()
	taken := 0
	for range 30 {
		if _, _, ok := d.Queues[1].Take(t); ok {
			taken++
		}
	}
	if taken == 29 {
		t.Error("the device takes all that no one reads")
	}
	dev.(interface{ Resume() }).Resume()
	unstick()
	virtiotest.Eventually(t, "all of the text", func() bool { return s.String() == want })
}

func TestInput(t *testing.T) {
	m, c, d, _ := attach(t, &screen{})
	at := m.Mem.Alloc(t, 4096)
	if n := c.Type([]byte("be")); n != 2 { // before there is room for it
		t.Errorf("Type takes %d bytes", n)
	}
	got := ""
	for _, more := range []string{"fore ", "and after", ""} {
		c.Type([]byte(more))
		want := len(got) + len(more)
		if got == "" {
			want += 2
		}
		for len(got) < want {
			n := d.Queues[0].Do(t, virtiotest.Buffer{Addr: at, Len: 3, Write: true})
			got += string(m.Mem.Bytes(t, at, int(n)))
		}
	}
	if got != "before and after" {
		t.Errorf("the guest reads %q", got)
	}
	// A guest that does not read gets no more than so much.
	if n := c.Type(make([]byte, 1<<20)); n != 64<<10 {
		t.Errorf("%d bytes wait", n)
	}
	if n := c.Type([]byte("x")); n != 0 {
		t.Errorf("Type takes %d bytes more", n)
	}
}
