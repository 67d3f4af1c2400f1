package linux

import (
	"encoding/json"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// Views of sockets.
const (
	ViewSockHash View = "sock_hash" // the table or list in which a protocol finds its sockets
	ViewFiles    View = "files"     // the tables of open files of processes
)

// Socket is a socket of the guest and one process that has it open. A socket
// that several processes have open is several of them, one for each.
type Socket struct {
	// Family is the address family: inet, inet6, unix, netlink, packet, vsock,
	// … (include/linux/socket.h), its number where it has no name here.
	Family string `json:"family"`
	Type   string `json:"type"` // stream, dgram, raw, rdm, seqpacket, dccp, packet
	// Proto is the protocol: of inet and inet6 that of IP (tcp, udp, icmp, …),
	// of netlink its bus (route, audit, …), of packet the EtherType; its number
	// where it has no name here. Empty for families that have but one.
	Proto string `json:"proto"`
	// LocalAddr and RemoteAddr are, of inet and inet6, IP addresses, in which
	// ::ffff:192.0.2.1 is an IPv4 address on a socket of inet6; of unix the name
	// that the socket (its peer) is bound to, one in the abstract namespace with
	// @ before it and in place of each NUL; of packet the interface's name, or *;
	// of vsock context ids, or *. Empty where there is none.
	LocalAddr string `json:"local_addr"`
	// LocalPort and RemotePort are ports; of netlink, port ids. 0 where there is
	// none, on raw sockets too. A vsock port may be 4294967295, for any.
	LocalPort  uint32 `json:"local_port"`
	RemoteAddr string `json:"remote_addr"`
	RemotePort uint32 `json:"remote_port"`
	// State is as ss(8) names it: LISTEN, ESTAB, SYN-SENT, SYN-RECV, FIN-WAIT-1,
	// FIN-WAIT-2, TIME-WAIT, CLOSE-WAIT, LAST-ACK, CLOSING, UNCONN.
	State string `json:"state"`
	// PID is the process that has the socket open and Comm its name; 0 for a
	// socket without one: in TIME-WAIT, the kernel's own, one that waits in a
	// queue to be accepted or received.
	PID  int    `json:"pid"`
	Comm string `json:"comm"`
	FD   int    `json:"fd"`  // the lowest that the process has of it; -1 without a process
	UID  int    `json:"uid"` // who made it, as the first user namespace numbers users; NoID where not known
	// Inode is the number in "socket:[…]" that /proc/PID/fd shows; 0 for a
	// socket without a file.
	Inode     uint64 `json:"inode"`
	PeerInode uint64 `json:"peer_inode"` // of unix: the socket that it is connected to
	NetNS     uint32 `json:"netns"`      // inode number of the network namespace
	// Ifindex is the interface that the socket is bound to, 0 for any.
	Ifindex       int                 `json:"ifindex"`
	KernelAddress hypervisor.VirtAddr `json:"kernel_address"` // of the struct sock
	// Hidden: a process has it open, but it is not in the table in which the
	// kernel finds its like, though that could be walked to its end. SeenIn names
	// the views that have it.
	Hidden bool   `json:"hidden"`
	SeenIn []View `json:"seen_in"`
}

// MarshalJSON writes s with its strings made valid: see the package comment.
func (s Socket) MarshalJSON() ([]byte, error) {
	type plain Socket // without this method
	q := plain(s)
	q.LocalAddr, q.RemoteAddr, q.Comm = jsonText(s.LocalAddr), jsonText(s.RemoteAddr), jsonText(s.Comm)
	return json.Marshal(q)
}

// Listens reports whether the socket waits for others to call: it is in state
// LISTEN, or is one of IP without connections that is bound and not connected.
func (s Socket) Listens() bool {
	if s.State == sockStates[tcpListen] {
		return true
	}
	ip := s.Family == sockFamilies[afInet] || s.Family == sockFamilies[afInet6]
	return ip && s.State == sockStates[tcpClose] &&
		(s.Type == sockTypes[sockRaw] || s.Type == sockTypes[sockDgram] && s.LocalPort != 0)
}

// SocketOptions say what Sockets lists.
type SocketOptions struct {
	// Listening lists only sockets that wait for others to call: see
	// Socket.Listens.
	Listening bool
	// PID lists only sockets of that process; 0: of all, and those of none.
	PID int
}

// SocketList is what Sockets found, sorted by family, network namespace, type,
// protocol, addresses, ports, PID and kernel address.
type SocketList struct {
	Sockets []Socket
	// Coverage tells what could not be read or believed.
	Coverage *introspect.Coverage
}
