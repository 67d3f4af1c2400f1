package linux

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// sock is a socket of the guest.
type sock struct {
	addr  hypervisor.VirtAddr
	in    sockKind // tables that have it
	chain uint32   // the last chain that it was met in

	family, num, dport uint16
	state              uint8
	local, remote      netip.Addr
	boundIf            int32
	net, listener      hypervisor.VirtAddr

	// Of a full socket.
	socket        hypervisor.VirtAddr // its struct socket, 0: none (any more)
	typ, protocol uint16
	uid           int
	ino           uint64
	busy          bool // somebody holds its lock: it may be on its way into a table, or out
	files         bool // a process has it open

	// As its family has it.
	name, peerName string
	port, peerPort uint32
	peer           hypervisor.VirtAddr
	sport          uint16
	bound          bool
}

// full reports whether s is a struct sock, and not one of the smaller kinds
// that only begin like it.
func (s *sock) full() bool { return s.state != tcpTimeWait && s.state != tcpNewSynRecv }

// common sets what sock_common tells.
func (s *sock) common(f *sockFields, o object) {
	s.family, s.state = uint16(o.uint(f.family)), uint8(o.uint(f.state))
	s.num, s.dport = uint16(o.uint(f.num)), sockBE16(o, f.dport)
	s.net, s.listener = o.ptr(f.net), o.ptr(f.listener)
	s.boundIf = o.int32(f.boundIf)
	switch s.family {
	case afInet:
		s.local, s.remote = sockAddr(o.bytes(f.rcvSaddr)), sockAddr(o.bytes(f.daddr))
	case afInet6:
		s.local, s.remote = sockAddr(o.bytes(f.v6RcvSaddr)), sockAddr(o.bytes(f.v6Daddr))
	}
}

// details reads the rest of s.
func (w *sockWalk) details(s *sock) error {
	s.uid = NoID
	if ip := s.family == afInet || s.family == afInet6; ip && !s.full() {
		s.typ, s.protocol = sockStream, ipprotoTCP
		if s.state == tcpTimeWait && w.f.twSubstate.ok {
			// A connection in FIN-WAIT-2 that nobody has open is kept in the
			// small form too.
			b := make([]byte, 1)
			if err := w.g.r.full(b, s.addr+hypervisor.VirtAddr(w.f.twSubstate.off)); err != nil {
				return err
			}
			s.state = b[0]
		}
		return nil
	}
	o, buf, err := w.g.r.object(w.buf, s.addr, w.f.restSpan)
	w.buf = buf
	if err != nil {
		return err
	}
	s.socket = o.ptr(w.f.socket)
	s.typ, s.protocol = uint16(o.uint(w.f.typ)), uint16(o.uint(w.f.protocol))
	if w.f.uid.ok {
		s.uid = int(o.uint(w.f.uid))
	}
	s.busy = o.uint(w.f.owned) != 0 || o.uint(w.f.slock) != 0
	return w.ofFamily(s)
}

func (w *sockWalk) ofFamily(s *sock) error {
	switch s.family {
	case afInet, afInet6:
		if !w.f.sport.ok {
			s.sport = s.num
			return nil
		}
		var b [2]byte
		err := w.g.r.full(b[:], s.addr+hypervisor.VirtAddr(w.f.sport.off))
		s.sport = binary.BigEndian.Uint16(b[:])
		return err
	case afUnix:
		return w.unix(s)
	case afNetlink:
		return w.netlink(s)
	case afPacket:
		return w.packet(s)
	case afVsock:
		return w.vsock(s)
	}
	return nil
}

// inode sets the number of s's inode.
func (w *sockWalk) inode(s *sock) error {
	if s.ino != 0 || s.socket == 0 || !w.f.socketIno.ok {
		return nil
	}
	if err := w.g.r.check(s.addr, s.socket, 8); err != nil {
		return err
	}
	ino, err := w.g.r.u64(s.socket + hypervisor.VirtAddr(w.f.socketIno.off))
	s.ino = ino
	return err
}

// unix reads what only a struct unix_sock has.
func (w *sockWalk) unix(s *sock) error {
	if !w.f.unixAddr.ok {
		return nil
	}
	o, buf, err := w.g.r.object(w.buf, s.addr, w.f.unixSpan)
	w.buf = buf
	if err != nil {
		return err
	}
	s.peer = o.ptr(w.f.unixPeer)
	s.name, err = w.unixName(s.addr, o.ptr(w.f.unixAddr))
	return err
}

// sunPathMax is the size of sockaddr_un.sun_path (include/uapi/linux/un.h:
// UNIX_PATH_MAX).
const sunPathMax = 108

// unixName reads the struct unix_address at addr, which the socket at where
// leads to. 0: the socket is not bound.
func (w *sockWalk) unixName(where, addr hypervisor.VirtAddr) (string, error) {
	if addr == 0 || !w.f.unixLen.ok || !w.f.unixSun.ok || !w.f.sunOff.ok {
		return "", nil
	}
	if err := w.g.r.check(where, addr, 4); err != nil {
		return "", err
	}
	size, err := w.g.r.u32(addr + hypervisor.VirtAddr(w.f.unixLen.off))
	if err != nil {
		return "", err
	}
	skip := w.f.sunOff.off
	if uint64(size) < skip || uint64(size) > skip+sunPathMax+1 {
		return "", &PointerError{Where: where, Value: addr, Err: fmt.Errorf("%w: a name of %d bytes", ErrTorn, size)}
	}
	b := make([]byte, uint64(size)-skip)
	if err := w.g.r.full(b, addr+hypervisor.VirtAddr(w.f.unixSun.off+skip)); err != nil {
		return "", err
	}
	return sockUnixName(b), nil
}

// sockUnixName returns the name whose sun_path is b, as /proc/net/unix prints it
// (net/unix/af_unix.c: unix_seq_show).
func sockUnixName(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	if b[0] != 0 {
		return cString(b)
	}
	return strings.ReplaceAll(string(b), "\x00", "@")
}

// netlink reads what only a struct netlink_sock has.
func (w *sockWalk) netlink(s *sock) error {
	if !w.f.nlPort.ok {
		return nil
	}
	o, buf, err := w.g.r.object(w.buf, s.addr, w.f.nlSpan)
	w.buf = buf
	s.port, s.peerPort = uint32(o.uint(w.f.nlPort)), uint32(o.uint(w.f.nlDstPort))
	s.bound = o.uint(w.f.nlBound) != 0
	return err
}

// packet reads what only a struct packet_sock has.
func (w *sockWalk) packet(s *sock) error {
	if !w.f.pkNum.ok {
		return nil
	}
	o, buf, err := w.g.r.object(w.buf, s.addr, w.f.pkSpan)
	w.buf = buf
	if err != nil {
		return err
	}
	s.protocol, s.boundIf = sockBE16(o, w.f.pkNum), o.int32(w.f.pkIfindex)
	s.name = "*"
	dev := o.ptr(w.f.pkDev)
	if dev == 0 || !w.f.devName.ok {
		return nil
	}
	if err := w.g.r.check(s.addr, dev, 8); err != nil {
		return err
	}
	b := make([]byte, w.f.devName.size)
	if err := w.g.r.full(b, dev+hypervisor.VirtAddr(w.f.devName.off)); err != nil {
		return err
	}
	s.name = cString(b)
	return nil
}

// vsock reads the addresses of a struct vsock_sock, which belongs to a module:
// the kernel's own types do not tell of it. They follow the struct sock, with at
// most one pointer between (net/vmw_vsock/af_vsock.h), and each says of itself
// what it is.
func (w *sockWalk) vsock(s *sock) error {
	const most = 8 + 2*sockaddrVMSize
	if w.f.sockSize == 0 {
		return nil
	}
	var b [most]byte
	if err := w.g.r.full(b[:], s.addr+hypervisor.VirtAddr(w.f.sockSize)); err != nil {
		return err
	}
	s.name, s.port, s.peerName, s.peerPort = sockVsock(b[:])
	return nil
}

// sockaddrVMSize is the size of a struct sockaddr_vm
// (include/uapi/linux/vm_sockets.h).
const sockaddrVMSize = 16

// vmaddrAny is VMADDR_CID_ANY and VMADDR_PORT_ANY (include/uapi/linux/vm_sockets.h).
const vmaddrAny = 0xffff_ffff

// sockVsock finds the two addresses of a vsock in b; nothing when they are not
// there.
func sockVsock(b []byte) (local string, localPort uint32, remote string, remotePort uint32) {
	for off := 0; off+2*sockaddrVMSize <= len(b); off += 8 {
		l, r := b[off:off+sockaddrVMSize], b[off+sockaddrVMSize:off+2*sockaddrVMSize]
		if binary.LittleEndian.Uint16(l) != afVsock || binary.LittleEndian.Uint16(r) != afVsock {
			continue
		}
		cid := func(b []byte) string {
			n := binary.LittleEndian.Uint32(b[8:])
			if n == vmaddrAny {
				return "*"
			}
			return fmt.Sprint(n)
		}
		return cid(l), binary.LittleEndian.Uint32(l[4:]), cid(r), binary.LittleEndian.Uint32(r[4:])
	}
	return "", 0, "", 0
}
