package linux

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// Sockets lists the guest's sockets, of all network namespaces, by two views:
// the tables in which the protocols find their sockets, and the open files of
// all processes. Those of families whose tables are not known to the kernel's
// own types (vsock, sctp and others that are modules) are found by files alone.
//
// A socket that a process has open but that its protocol's table lacks is
// marked hidden, unless that table could not be walked to its end or the socket
// need not be in it: one that is not bound is in none.
//
// The list is partial when ctx ends, which is then the error. An error that
// wraps profile.ErrNoType says that this kernel's types tell nothing of sockets.
func (g *Guest) Sockets(ctx context.Context, opt SocketOptions) (SocketList, error) {
	list := SocketList{Sockets: []Socket{}, Coverage: &introspect.Coverage{}}
	var last *sockWalk
	var suspects map[hypervisor.VirtAddr]uint64 // hidden in every look so far, with their inodes
	for range g.rounds() {
		cov := &introspect.Coverage{}
		f, err := tableOf[sockFields](g, cov)
		if err != nil {
			return list, fmt.Errorf("list sockets: %w", err)
		}
		w := g.newSockWalk(ctx, f)
		if err := w.look(cov); err != nil {
			return list, fmt.Errorf("list sockets: %w", err)
		}
		for _, p := range w.problems {
			cov.Add(p.what, p.at, p.err)
		}
		if w.lost > 0 {
			cov.Add("sockets", 0, fmt.Errorf("%d more problems", w.lost))
		}
		next := map[hypervisor.VirtAddr]uint64{}
		for _, s := range w.order {
			if ino, ok := suspects[s.addr]; w.hidden(s) && (suspects == nil || ok && ino == s.ino) {
				next[s.addr] = s.ino
			}
		}
		last, suspects, list.Coverage = w, next, cov
		if cov.Complete() && len(suspects) == 0 {
			break
		}
	}
	list.Sockets = last.rows(opt, suspects)
	return list, nil
}

// look looks at both views once.
func (w *sockWalk) look(cov *introspect.Coverage) error {
	if err := w.allFiles(cov); err != nil {
		return err
	}
	if err := w.allTables(); err != nil {
		return err
	}
	for i := 0; i < len(w.order); i++ {
		if i%ctxEvery == 0 && w.ctx.Err() != nil {
			return w.ctx.Err()
		}
		s := w.order[i]
		err := w.details(s)
		if err == nil {
			err = w.inode(s)
		}
		if err != nil {
			w.bad("socket", s.addr, err)
		}
		w.namespace(s.net)
	}
	return nil
}

// must returns the tables that s has to be in, by what it is.
func (s *sock) must() sockKind {
	ip := s.family == afInet || s.family == afInet6
	switch {
	case s.family == afUnix:
		return sockUnix
	case s.family == afPacket:
		return sockPacket
	case s.family == afXDP:
		return sockXDP
	case s.family == afNetlink && s.bound:
		return sockNetlink
	case !ip:
	case s.typ == sockStream && s.protocol == ipprotoTCP && s.state == tcpListen:
		return sockListen | sockAddrs
	case s.typ == sockStream && s.protocol == ipprotoTCP && s.state != tcpClose:
		return sockTCP
	case s.num == 0 || s.sport == 0: // not bound, or not any more
	case s.typ == sockDgram && s.protocol == ipprotoUDP:
		return sockUDP
	case s.typ == sockDgram && s.protocol == ipprotoUDPLite:
		return sockUDPLite
	case s.typ == sockDgram && (s.protocol == ipprotoICMP || s.protocol == ipprotoICMPv6):
		return sockPing
	case s.typ == sockRaw && s.family == afInet:
		return sockRaw4
	case s.typ == sockRaw:
		return sockRaw6
	}
	return 0
}

// hidden reports whether a process has s open but a table lacks it that was
// walked to its end.
func (w *sockWalk) hidden(s *sock) bool {
	if !s.files || s.busy {
		return false
	}
	return s.must()&w.whole&^w.broken&^s.in != 0
}

// rows makes the list of what was found.
func (w *sockWalk) rows(opt SocketOptions, hidden map[hypervisor.VirtAddr]uint64) []Socket {
	rows := make([]Socket, 0, len(w.order))
	for _, s := range w.order {
		row := w.row(s)
		_, row.Hidden = hidden[s.addr]
		if opt.Listening && !row.Listens() {
			continue
		}
		owners := w.owners.of[s.socket]
		if len(owners) == 0 && opt.PID == 0 {
			rows = append(rows, row)
		}
		for _, o := range owners {
			if opt.PID != 0 && int(o.pid) != opt.PID {
				continue
			}
			row.PID, row.FD, row.Comm = int(o.pid), int(o.fd), w.owners.names[o.pid]
			rows = append(rows, row)
		}
	}
	slices.SortFunc(rows, func(a, b Socket) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.NetNS, b.NetNS), cmp.Compare(a.Type, b.Type),
			cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.LocalAddr, b.LocalAddr), cmp.Compare(a.LocalPort, b.LocalPort),
			cmp.Compare(a.RemoteAddr, b.RemoteAddr), cmp.Compare(a.RemotePort, b.RemotePort),
			cmp.Compare(a.PID, b.PID), cmp.Compare(a.KernelAddress, b.KernelAddress))
	})
	return rows
}

// row makes s a Socket of nobody.
func (w *sockWalk) row(s *sock) Socket {
	row := Socket{
		Family: sockName(sockFamilies[:], uint64(s.family)), Type: sockName(sockTypes[:], uint64(s.typ)),
		Proto: sockProtoName(s.family, s.protocol), State: sockName(sockStates[:], uint64(s.state)),
		LocalAddr: s.name, LocalPort: s.port, RemoteAddr: s.peerName, RemotePort: s.peerPort,
		FD: -1, UID: s.uid, Inode: s.ino, NetNS: w.nets[s.net], Ifindex: int(s.boundIf), KernelAddress: s.addr,
		SeenIn: make([]View, 0, 2),
	}
	if s.in != 0 {
		row.SeenIn = append(row.SeenIn, ViewSockHash)
	}
	if s.files {
		row.SeenIn = append(row.SeenIn, ViewFiles)
	}
	switch s.family {
	case afInet, afInet6:
		row.LocalAddr, row.RemoteAddr = sockAddrText(s.local), sockAddrText(s.remote)
		if s.typ != sockRaw { // which has its protocol there
			row.LocalPort, row.RemotePort = uint32(s.num), uint32(s.dport)
		}
		if l := w.socks[s.listener]; s.state == tcpNewSynRecv && l != nil {
			row.UID = l.uid
		}
	case afUnix:
		if p := w.peer(s); p != nil {
			row.RemoteAddr, row.PeerInode = p.name, p.ino
		}
	}
	return row
}

// peer returns the socket that s is connected to, nil when there is none.
func (w *sockWalk) peer(s *sock) *sock {
	if s.peer == 0 {
		return nil
	}
	return w.socks[s.peer]
}
