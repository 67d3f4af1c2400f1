package linux

import (
	"encoding/binary"
	"net/netip"
	"strconv"
)

// Address families (include/linux/socket.h).
const (
	afUnix    = 1
	afInet    = 2
	afInet6   = 10
	afNetlink = 16
	afPacket  = 17
	afVsock   = 40
	afXDP     = 44
	afMax     = 46 // AF_MAX of the newest kernel that is known here
)

// sockFamilies are the names of the families, as their constants are named.
var sockFamilies = [afMax]string{
	"unspec", "unix", "inet", "ax25", "ipx", "appletalk", "netrom", "bridge", "atmpvc", "x25",
	"inet6", "rose", "decnet", "netbeui", "security", "key", "netlink", "packet", "ash", "econet",
	"atmsvc", "rds", "sna", "irda", "pppox", "wanpipe", "llc", "ib", "mpls", "can",
	"tipc", "bluetooth", "iucv", "rxrpc", "isdn", "phonet", "ieee802154", "caif", "alg", "nfc",
	"vsock", "kcm", "qipcrtr", "smc", "xdp", "mctp",
}

// Types of sockets (include/linux/net.h: enum sock_type).
const (
	sockStream = 1
	sockDgram  = 2
	sockRaw    = 3
)

var sockTypes = [...]string{
	sockStream: "stream", sockDgram: "dgram", sockRaw: "raw", 4: "rdm", 5: "seqpacket", 6: "dccp", 10: "packet",
}

// States (include/net/tcp_states.h). All families use the numbers of TCP.
const (
	tcpTimeWait   = 6
	tcpClose      = 7
	tcpListen     = 10
	tcpNewSynRecv = 12
)

// sockStates are the names that ss(8) gives the states.
var sockStates = [...]string{
	1: "ESTAB", 2: "SYN-SENT", 3: "SYN-RECV", 4: "FIN-WAIT-1", 5: "FIN-WAIT-2", tcpTimeWait: "TIME-WAIT", tcpClose: "UNCONN",
	8: "CLOSE-WAIT", 9: "LAST-ACK", tcpListen: "LISTEN", 11: "CLOSING", tcpNewSynRecv: "SYN-RECV",
}

// Protocols of IP (include/uapi/linux/in.h, in6.h).
const (
	ipprotoICMP    = 1
	ipprotoTCP     = 6
	ipprotoUDP     = 17
	ipprotoICMPv6  = 58
	ipprotoUDPLite = 136
)

var sockIPProtocols = map[uint16]string{
	0: "ip", ipprotoICMP: "icmp", 2: "igmp", 4: "ipip", ipprotoTCP: "tcp", 8: "egp", 12: "pup", ipprotoUDP: "udp", 22: "idp",
	29: "tp", 33: "dccp", 41: "ipv6", 46: "rsvp", 47: "gre", 50: "esp", 51: "ah", ipprotoICMPv6: "icmpv6", 89: "ospf",
	92: "mtp", 94: "beetph", 98: "encap", 103: "pim", 108: "comp", 112: "vrrp", 115: "l2tp", 132: "sctp",
	ipprotoUDPLite: "udplite", 137: "mpls", 143: "ethernet", 144: "aggfrag", 255: "raw", 256: "smc", 262: "mptcp",
}

// sockNetlinkNames are the buses of netlink (include/uapi/linux/netlink.h).
var sockNetlinkNames = [...]string{
	"route", "unused", "usersock", "firewall", "sock_diag", "nflog", "xfrm", "selinux", "iscsi", "audit",
	"fib_lookup", "connector", "netfilter", "ip6_fw", "dnrtmsg", "kobject_uevent", "generic", "dm", "scsitransport",
	"ecryptfs", "rdma", "crypto", "smc",
}

// sockEtherTypes are the EtherTypes that are met (include/uapi/linux/if_ether.h).
var sockEtherTypes = map[uint16]string{
	0: "none", 1: "802.3", 3: "all", 4: "802.2", 0x0800: "ip", 0x0806: "arp", 0x8035: "rarp", 0x8100: "802.1q", 0x86dd: "ipv6",
	0x8863: "pppoe_disc", 0x8864: "pppoe_ses", 0x888e: "pae", 0x88cc: "lldp", 0x88f7: "1588",
}

// sockName returns names[n], or n itself when it has no name.
func sockName(names []string, n uint64) string {
	if n < uint64(len(names)) && names[n] != "" {
		return names[n]
	}
	return strconv.FormatUint(n, 10)
}

// sockProtoName returns the name of a protocol of a family.
func sockProtoName(family, protocol uint16) string {
	switch family {
	case afInet, afInet6:
		if s, ok := sockIPProtocols[protocol]; ok {
			return s
		}
		return strconv.Itoa(int(protocol))
	case afNetlink:
		return sockName(sockNetlinkNames[:], uint64(protocol))
	case afPacket:
		if s, ok := sockEtherTypes[protocol]; ok {
			return s
		}
		return "0x" + strconv.FormatUint(uint64(protocol), 16)
	}
	if protocol == 0 || family == afUnix || family == afVsock {
		return ""
	}
	return strconv.Itoa(int(protocol))
}

// sockAddr returns the address whose bytes, in network order, are b; none when
// this kernel has no such member.
func sockAddr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

// sockAddrText is how an address is shown.
func sockAddrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// sockBE16 returns the 16 bits in network order at f.
func sockBE16(o object, f field) uint16 {
	b := o.bytes(f)
	if len(b) < 2 {
		return 0
	}
	return binary.BigEndian.Uint16(b)
}
