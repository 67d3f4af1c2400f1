package linux

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/lab"
)

// patchedRAM is memory some words of which are others.
type patchedRAM struct {
	hypervisor.VM
	words map[hypervisor.PhysAddr]uint64
}

func (m *patchedRAM) ReadPhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	n, err := m.VM.ReadPhys(p, gpa)
	for at, word := range m.words {
		for i := range hypervisor.PhysAddr(8) {
			if off := at + i; off >= gpa && off < gpa+hypervisor.PhysAddr(n) {
				p[off-gpa] = byte(word >> (8 * i))
			}
		}
	}
	return n, err
}

// hideSockets takes sockets out of their tables, one after the other, as a
// rootkit does: what points to it points to what follows it.
func hideSockets(t *testing.T, vm hypervisor.VM, list []Socket) {
	ram := &patchedRAM{VM: vm, words: map[hypervisor.PhysAddr]uint64{}}
	g, err := Open(t.Context(), ram, Options{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := tableOf[sockFields](g, nil)
	if err != nil {
		t.Fatal(err)
	}
	done := map[string]bool{}
	for _, s := range list {
		kind := s.Family + " " + s.Type + " " + s.Proto + " " + s.State
		if s.PID == 0 || len(s.SeenIn) != 2 || s.Family == "netlink" || s.Family == "inet6" && s.State != "LISTEN" || done[kind] {
			continue
		}
		done[kind] = true
		ram.words = nil
		node, err := g.r.readLinks(s.KernelAddress + hypervisor.VirtAddr(f.node.off))
		if err != nil {
			t.Fatal(err)
		}
		m, err := g.kernel.Space.Translate(node.prev) // pprev
		if err != nil {
			t.Fatal(err)
		}
		ram.words = map[hypervisor.PhysAddr]uint64{m.At(node.prev): uint64(node.next)}
		l, err := g.Sockets(t.Context(), SocketOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range l.Coverage.Problems() {
			t.Errorf("%s is hidden, but: %v", kind, p)
		}
		hidden := 0
		for _, h := range l.Sockets {
			switch {
			case h.KernelAddress == s.KernelAddress:
				if !h.Hidden {
					t.Errorf("%s is not seen to be hidden: %+v", kind, h)
				}
				hidden++
			case h.Hidden:
				t.Errorf("%s is hidden, but this is called so: %+v", kind, h)
			}
		}
		if hidden == 0 {
			t.Errorf("%s: nothing is seen of what is hidden", kind)
		}
	}
	if len(done) < 20 {
		t.Errorf("only %d kinds of sockets were hidden: %v", len(done), done)
	}
}

// sockStorm looks at a guest whose sockets come and go all the time: none of
// them is called hidden, and those that stay are always there.
func sockStorm(t *testing.T, g *lab.Guest) {
	guest := openLive(t, g)
	runSockets(t, g, "storm")
	still, err := Open(t.Context(), openRAM(t, g), Options{})
	if err != nil {
		t.Fatal(err)
	}
	torn, seen := 0, map[uint64]bool{}
	for i := range 100 {
		// Every other look is at one moment, in the middle of whatever it is.
		look := guest
		if i%2 == 1 {
			if err := g.Pause(t.Context()); err != nil {
				t.Fatal(err)
			}
			still.Flush()
			look = still
		}
		l, err := look.Sockets(t.Context(), SocketOptions{})
		if look == still {
			resume(t, g)
		}
		if err != nil {
			t.Fatal(err)
		}
		stay := 0
		for _, s := range l.Sockets {
			if s.Hidden {
				t.Errorf("look %d: %+v is called hidden", i, s)
			}
			if s.LocalPort == 9100 {
				seen[s.Inode] = true
			}
			if s.LocalPort == 7000 || s.LocalPort == 5001 {
				stay++
			}
		}
		if stay < 10 {
			t.Errorf("look %d: only %d of the sockets that stay", i, stay)
		}
		if !l.Coverage.Complete() {
			torn++
			t.Logf("look %d: %v", i, l.Coverage.Problems())
		}
	}
	t.Logf("%d sockets of the storm were seen, %d of 100 looks were incomplete", len(seen), torn)
	if len(seen) < 3 {
		t.Errorf("only %d sockets of the storm were seen", len(seen))
	}
	if torn > 10 {
		t.Errorf("%d of 100 looks were incomplete", torn)
	}
}

// sockRootkit lets a rootkit hide sockets, which the guest's own kernel does not
// list any more.
func sockRootkit(t *testing.T, g *lab.Guest, before []Socket) {
	hide := map[hypervisor.VirtAddr]Socket{}
	kinds := map[string]bool{}
	var words []string
	for _, s := range before {
		kind := s.Family + " " + s.State
		if s.PID == 0 || s.Type != "stream" || s.Proto != "tcp" && s.Family != "unix" || len(s.SeenIn) != 2 || s.State != "LISTEN" && s.State != "ESTAB" || kinds[kind] {
			continue
		}
		kinds[kind] = true
		hide[s.KernelAddress] = s
		words = append(words, fmt.Sprintf("%d:%d", s.PID, s.FD))
	}
	if len(hide) != 6 {
		t.Fatalf("%d sockets to hide: %v", len(hide), kinds)
	}
	out, err := g.Run(t.Context(), `insmod /kit.ko sockets=`+strings.Join(words, ",")+` || exit 1
		cat /proc/[0-9]*/net/tcp /proc/[0-9]*/net/tcp6 /proc/[0-9]*/net/unix | awk '{print $10, $7}' | sort -u`)
	if err != nil {
		t.Fatal(err)
	}
	l, err := openLive(t, g).Sockets(t.Context(), SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	met := map[hypervisor.VirtAddr]bool{}
	for _, s := range l.Sockets {
		want, ok := hide[s.KernelAddress]
		if s.Hidden != ok {
			t.Errorf("hidden %v, want %v: %+v", s.Hidden, ok, s)
		}
		if !ok {
			continue
		}
		met[s.KernelAddress] = true
		if slices.Contains(strings.Fields(out), fmt.Sprint(s.Inode)) {
			t.Errorf("the guest still lists %+v", s)
		}
		if s.LocalAddr != want.LocalAddr || s.LocalPort != want.LocalPort || s.State != want.State || !slices.Equal(s.SeenIn, []View{ViewFiles}) {
			t.Errorf("%+v, want %+v", s, want)
		}
	}
	if len(met) != len(hide) {
		t.Errorf("%d hidden sockets are seen, want %d", len(met), len(hide))
	}
}
