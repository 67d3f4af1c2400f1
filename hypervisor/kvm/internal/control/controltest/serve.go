package controltest

import (
	"net"
	"sync"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/control"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/socketdir"
)

// Served is a machine that is served on a real socket.
type Served struct {
	*Machine
	Server *control.Server
	Claim  *socketdir.Claim
	End    func(why error) // ends the server and gives the name back; once
}

// Serve serves m in dir until the end of t.
func Serve(t testing.TB, dir socketdir.Dir, m *Machine, o control.Options) *Served {
	t.Helper()
	srv, err := control.New(m, o)
	if err != nil {
		t.Fatal(err)
	}
	claim, err := dir.Claim(m.Info().Name)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := control.Listen(claim.Socket())
	if err != nil {
		t.Fatal(err)
	}
	s := &Served{Machine: m, Server: srv, Claim: claim}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.Serve(ln); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	var once sync.Once
	s.End = func(why error) {
		once.Do(func() {
			srv.Close(why)
			wg.Wait()
			claim.Release()
		})
	}
	t.Cleanup(func() { s.End(hypervisor.ErrGone) })
	return s
}

// Dial connects to the machine's socket without a protocol.
func (s *Served) Dial(t testing.TB) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: s.Claim.Path()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}
