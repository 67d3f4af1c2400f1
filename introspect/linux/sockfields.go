package linux

import (
	"github.com/vantage-vmi/vantage/hypervisor"
)

// sockFields is where the facts of sockets lie.
type sockFields struct {
	// In struct sock_common, with which each kind of socket begins: full ones,
	// those of TIME-WAIT and those of a request to connect.
	daddr, rcvSaddr, dport, num, family, state, boundIf field
	net, v6Daddr, v6RcvSaddr, listener, node            field
	commonSpan                                          span
	// In struct sock, which is the rest of a full one.
	socket, uid, ino, owned, slock, typ, protocol field
	restSpan                                      span
	sockSize                                      uint64

	sport, twSubstate, portaddrNode      field // in inet_sock, inet_timewait_sock, inet_connection_sock
	unixAddr, unixPeer, unixLen, unixSun field // in unix_sock and unix_address
	unixSpan                             span
	nlPort, nlDstPort, nlBound, nlNode   field // in netlink_sock
	nlSpan                               span
	pkNum, pkIfindex, pkDev, devName     field // in packet_sock and net_device
	pkSpan                               span

	fileOps, filePrivate                                field // in struct file
	fileSpan                                            span
	socketFile, socketSK, socketType, socketIno, sunOff field // in socket_alloc; the last in sockaddr_un
	socketSpan                                          span

	tables sockTableFields
	sym    sockSymbols
}

// sockTableFields is where the tables of the protocols lie.
type sockTableFields struct {
	// In struct net.
	netList, netInum, netUnix, netPacket, netXDP, netTCP, netUDP field

	ehash, ehashMask, lhash2, lhash2Mask, listening field // in inet_hashinfo
	ehashHead, listenHead                           field // of a slot
	ehashSize, listenSize                           uint64
	udpHash, udpMask, udpHead                       field // in udp_table and udp_hslot
	udpSize                                         uint64
	rawHeads, pingHeads                             field // in raw_hashinfo and ping_table
	nlTbl                                           field // of a netlink_table
	nlSize                                          uint64
	rhSize, rhNest, rhFuture, rhBuckets             field // in bucket_table
}

// sockSymbols are the kernel's variables that lead to the tables.
type sockSymbols struct {
	namespaces, tcp, udp, udplite, raw4, raw6, ping, netlink, unix hypervisor.VirtAddr
	fileOps                                                        hypervisor.VirtAddr
}

func (f *sockFields) facts() []fact {
	t := &f.tables
	const c = "sock_common."
	return []fact{
		{&f.daddr, 4, must, []string{c + "skc_daddr"}},
		{&f.rcvSaddr, 4, must, []string{c + "skc_rcv_saddr"}},
		{&f.dport, 2, must, []string{c + "skc_dport"}},
		{&f.num, 2, must, []string{c + "skc_num"}},
		{&f.family, 2, must, []string{c + "skc_family"}},
		{&f.state, 1, must, []string{c + "skc_state"}},
		{&f.boundIf, 4, want, []string{c + "skc_bound_dev_if"}},
		{&f.net, 8, want, []string{c + "skc_net.net"}},             // CONFIG_NET_NS
		{&f.v6Daddr, 16, may, []string{c + "skc_v6_daddr"}},        // CONFIG_IPV6
		{&f.v6RcvSaddr, 16, may, []string{c + "skc_v6_rcv_saddr"}}, // CONFIG_IPV6
		{&f.listener, 8, want, []string{c + "skc_listener"}},       // of a request
		{&f.node, 16, must, []string{c + "skc_node"}},              // and skc_nulls_node
		{&f.socket, 8, must, []string{"sock.sk_socket"}},
		{&f.uid, 4, want, []string{"sock.sk_uid"}},
		{&f.ino, 0, may, []string{"sock.sk_ino"}}, // since 6.17
		{&f.owned, 0, want, []string{"sock.sk_lock.owned"}},
		{&f.slock, 0, want, []string{"sock.sk_lock.slock"}},
		{&f.sport, 2, want, []string{"inet_sock.inet_sport"}},
		{&f.twSubstate, 1, want, []string{"inet_timewait_sock.tw_substate"}},
		{&f.portaddrNode, 16, may, []string{"inet_connection_sock.icsk_listen_portaddr_node"}}, // until 5.18

		{&f.unixAddr, 8, want, []string{"unix_sock.addr"}},
		{&f.unixPeer, 8, want, []string{"unix_sock.peer"}},
		{&f.unixLen, 4, want, []string{"unix_address.len"}},
		{&f.unixSun, 0, want, []string{"unix_address.name"}},
		{&f.sunOff, 0, want, []string{"sockaddr_un.sun_path"}},
		{&f.nlPort, 4, want, []string{"netlink_sock.portid"}},
		{&f.nlDstPort, 4, want, []string{"netlink_sock.dst_portid"}},
		{&f.nlBound, 1, want, []string{"netlink_sock.bound"}},
		{&f.nlNode, 8, want, []string{"netlink_sock.node"}},
		{&f.pkNum, 2, may, []string{"packet_sock.num"}}, // CONFIG_PACKET, which may be a module
		{&f.pkIfindex, 4, may, []string{"packet_sock.ifindex"}},
		{&f.pkDev, 8, may, []string{"packet_sock.prot_hook.dev"}},
		{&f.devName, 16, want, []string{"net_device.name"}},

		{&f.fileOps, 8, want, []string{"file.f_op"}},
		{&f.filePrivate, 8, want, []string{"file.private_data"}},
		{&f.socketFile, 8, want, []string{"socket_alloc.socket.file"}},
		{&f.socketSK, 8, want, []string{"socket_alloc.socket.sk"}},
		{&f.socketType, 2, want, []string{"socket_alloc.socket.type"}},
		{&f.socketIno, 8, want, []string{"socket_alloc.vfs_inode.i_ino"}},

		{&t.netList, 16, want, []string{"net.list"}},
		{&t.netInum, 4, want, []string{"net.ns.inum"}},
		{&t.netUnix, 8, may, []string{"net.unx.table.buckets"}}, // since 6.0
		{&t.netPacket, 8, may, []string{"net.packet.sklist"}},
		{&t.netXDP, 8, may, []string{"net.xdp.list"}},
		{&t.netTCP, 8, may, []string{"net.ipv4.tcp_death_row.hashinfo"}},
		{&t.netUDP, 8, may, []string{"net.ipv4.udp_table"}}, // since 6.2
		{&t.ehash, 8, want, []string{"inet_hashinfo.ehash"}},
		{&t.ehashMask, 4, want, []string{"inet_hashinfo.ehash_mask"}},
		{&t.ehashHead, 8, want, []string{"inet_ehash_bucket.chain"}},
		{&t.lhash2, 8, want, []string{"inet_hashinfo.lhash2"}},
		{&t.lhash2Mask, 4, want, []string{"inet_hashinfo.lhash2_mask"}},
		{&t.listening, 0, may, []string{"inet_hashinfo.listening_hash"}}, // until 5.18
		{&t.listenHead, 8, want, []string{"inet_listen_hashbucket.nulls_head", "inet_listen_hashbucket.head"}},
		{&t.udpHash, 8, want, []string{"udp_table.hash"}},
		{&t.udpMask, 4, want, []string{"udp_table.mask"}},
		{&t.udpHead, 8, want, []string{"udp_hslot.head"}},
		{&t.rawHeads, 0, want, []string{"raw_hashinfo.ht"}},
		{&t.pingHeads, 0, may, []string{"ping_table.hash"}},
		{&t.nlTbl, 8, want, []string{"netlink_table.hash.tbl"}},
		{&t.rhSize, 4, want, []string{"bucket_table.size"}},
		{&t.rhNest, 4, want, []string{"bucket_table.nest"}},
		{&t.rhFuture, 8, want, []string{"bucket_table.future_tbl"}},
		{&t.rhBuckets, 0, want, []string{"bucket_table.buckets"}},
	}
}

func (f *sockFields) symbols() []symbol {
	s := &f.sym
	return []symbol{
		{&s.namespaces, want, []string{"net_namespace_list"}},
		{&s.tcp, want, []string{"tcp_hashinfo"}},
		{&s.udp, want, []string{"udp_table"}},
		{&s.udplite, may, []string{"udplite_table"}},
		{&s.raw4, want, []string{"raw_v4_hashinfo"}},
		{&s.raw6, may, []string{"raw_v6_hashinfo"}},
		{&s.ping, may, []string{"ping_table"}},
		{&s.netlink, want, []string{"nl_table"}},
		{&s.unix, may, []string{"unix_socket_table"}}, // until 6.0
		{&s.fileOps, want, []string{"socket_file_ops"}},
	}
}

func (f *sockFields) finish(t types) {
	f.typ, f.protocol = sockBits(t, "sock.sk_type"), sockBits(t, "sock.sk_protocol")
	f.commonSpan = spanOf(f.daddr, f.rcvSaddr, f.dport, f.num, f.family, f.state, f.boundIf, f.net,
		f.v6Daddr, f.v6RcvSaddr, f.listener, f.node)
	f.restSpan = spanOf(f.socket, f.uid, f.ino, f.owned, f.slock, f.typ, f.protocol)
	f.unixSpan = spanOf(f.unixAddr, f.unixPeer)
	f.nlSpan = spanOf(f.nlPort, f.nlDstPort, f.nlBound)
	f.pkSpan = spanOf(f.pkNum, f.pkIfindex, f.pkDev)
	f.fileSpan = spanOf(f.fileOps, f.filePrivate)
	f.socketSpan = spanOf(f.socketFile, f.socketSK, f.socketType, f.socketIno)
	for name, to := range map[string]*uint64{
		"sock": &f.sockSize, "inet_ehash_bucket": &f.tables.ehashSize, "inet_listen_hashbucket": &f.tables.listenSize,
		"udp_hslot": &f.tables.udpSize, "netlink_table": &f.tables.nlSize,
	} {
		if n, err := t.Size(name); err == nil && n >= 8 && n <= maxField {
			*to = n
		}
	}
}

// sockBits returns where a member lies that has been a bit-field of whole bytes
// (sk_type and sk_protocol were, until 5.5).
func sockBits(t types, path string) field {
	m, err := t.Field(path)
	size := m.Size
	if m.BitSize != 0 {
		size = uint64(m.BitSize) / 8
	}
	if err != nil || m.Offset > maxOffset || size != 1 && size != 2 || m.BitSize != 0 && (m.BitOffset != 0 || m.BitSize%8 != 0) {
		return field{}
	}
	return field{off: m.Offset, size: size, ok: true}
}
