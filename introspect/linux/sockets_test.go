package linux

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
)

// fakeSockStructs are the structures of sockets: see fakeStructs.
const fakeSockStructs = `
sock_common        skc_daddr:4 skc_rcv_saddr:4 skc_dport:2 skc_num:2 skc_family:2 skc_state:1 skc_bound_dev_if:4 skc_net.net:8 skc_v6_daddr:1:16 skc_v6_rcv_saddr:1:16 skc_listener:8 skc_node:8:2
sock               __sk_common:96 sk_lock.slock:4 sk_lock.owned:4 sk_socket:8 sk_uid:4 sk_type:2 sk_protocol:2
inet_sock          sk:128 inet_sport:2
inet_timewait_sock tw:112 tw_substate:1
unix_sock          sk:128 addr:8 peer:8
unix_address       refcnt:4 len:4 name:1:110
sockaddr_un        sun_family:2 sun_path:1:108
netlink_sock       sk:128 portid:4 dst_portid:4 bound:1 node:8
packet_sock        sk:128 num:2 ifindex:4 prot_hook.dev:8
net_device         name:1:16
socket_alloc       socket.type:2 socket.file:8 socket.sk:8 vfs_inode.i_ino:8
net                list:8:2 ns.inum:4 unx.table.buckets:8 packet.sklist:8 ipv4.tcp_death_row.hashinfo:8 ipv4.udp_table:8
inet_hashinfo      ehash:8 ehash_mask:4 lhash2_mask:4 lhash2:8
inet_ehash_bucket  chain:8
inet_listen_hashbucket lock:8 nulls_head:8
udp_table          hash:8 mask:4
udp_hslot          head:8 count:8
raw_hashinfo       ht:8:4
netlink_table      hash.tbl:8
bucket_table       size:4 nest:4 future_tbl:8 buckets:8:2
files_struct       fdt:8
fdtable            max_fds:4 fd:8 open_fds:8 close_on_exec:8
`

// fakeSocks is a fake guest whose first process has sockets.
type fakeSocks struct {
	*fake
	vars map[string]hypervisor.VirtAddr

	net, ehash, lhash, udpHash, unixHash, bucket, hashinfo, udpTable hypervisor.VirtAddr
	established, listener, udp, unix, packet, netlink                hypervisor.VirtAddr
	fds, name                                                        hypervisor.VirtAddr
	nfds                                                             int
}

func newFakeSocks(t testing.TB) *fakeSocks {
	t.Helper()
	s := &fakeSocks{fake: newFake(t, 2), vars: map[string]hypervisor.VirtAddr{}}
	s.types.add(fakeSockStructs)
	links := s.types.fields["task_struct.pid_links"]
	s.types.fields["task_struct.files"] = profile.Field{Offset: links.Offset + 48, Size: 8} // not used by the fake
	s.guest.symbol = func(name string) (hypervisor.VirtAddr, error) {
		if a, ok := s.vars[name]; ok {
			return a, nil
		}
		return 0, errNoSymbol(name)
	}
	// The file operations and the driver's data of struct file are of this one.
	s.types.add("file f_path:16 f_mode:4 f_op:8 private_data:8")
	s.next = (s.next + 7) &^ 7
	s.vars["socket_file_ops"] = s.alloc(8, 8)
	s.vars["net_namespace_list"] = s.alloc(16, 8)
	s.append(s.vars["net_namespace_list"], 0)
	s.net = s.object("net")
	s.append(s.vars["net_namespace_list"], s.member(s.net, "net.list"))
	s.set(s.net, "net.ns.inum", 4026531840)

	s.hashinfo, s.ehash, s.lhash = s.object("inet_hashinfo"), s.alloc(4*8, 8), s.alloc(2*16, 8)
	s.set(s.net, "net.ipv4.tcp_death_row.hashinfo", uint64(s.hashinfo))
	s.set(s.hashinfo, "inet_hashinfo.ehash", uint64(s.ehash))
	s.set(s.hashinfo, "inet_hashinfo.ehash_mask", 3)
	s.set(s.hashinfo, "inet_hashinfo.lhash2", uint64(s.lhash))
	s.set(s.hashinfo, "inet_hashinfo.lhash2_mask", 1)
	for i := range hypervisor.VirtAddr(4) {
		s.put64(s.ehash+i*8, uint64(i)<<1|1)
	}
	s.put64(s.lhash+8, 1)
	s.put64(s.lhash+24, 3)
	s.udpTable, s.udpHash = s.object("udp_table"), s.alloc(2*16, 8)
	s.set(s.net, "net.ipv4.udp_table", uint64(s.udpTable))
	s.set(s.udpTable, "udp_table.hash", uint64(s.udpHash))
	s.set(s.udpTable, "udp_table.mask", 1)
	s.unixHash = s.alloc(sockUnixSlots*8, 8)
	s.set(s.net, "net.unx.table.buckets", uint64(s.unixHash))
	s.vars["tcp_hashinfo"], s.vars["udp_table"] = s.hashinfo, s.udpTable
	s.vars["raw_v4_hashinfo"] = s.object("raw_hashinfo")
	table := s.alloc(maxNetlinks*8, 8)
	s.bucket = s.object("bucket_table")
	s.set(s.bucket, "bucket_table.size", 2)
	s.put64(table, uint64(s.bucket))
	s.vars["nl_table"] = s.alloc(8, 8)
	s.put64(s.vars["nl_table"], uint64(table))

	task := s.processes[0].task
	files, fdt, open := s.object("files_struct"), s.object("fdtable"), s.alloc(16, 8)
	s.fds = s.alloc(64*8, 8)
	s.set(task, "task_struct.files", uint64(files))
	s.set(files, "files_struct.fdt", uint64(fdt))
	s.set(fdt, "fdtable.max_fds", 64)
	s.set(fdt, "fdtable.fd", uint64(s.fds))
	s.set(fdt, "fdtable.open_fds", uint64(open))
	s.set(fdt, "fdtable.close_on_exec", uint64(open)+8)

	s.established = s.sock("inet_sock", afInet, sockStream, ipprotoTCP, 1, s.ehash+2*8)
	s.listener = s.sock("inet_sock", afInet6, sockStream, ipprotoTCP, tcpListen, s.lhash+8)
	s.udp = s.sock("inet_sock", afInet, sockDgram, ipprotoUDP, tcpClose, s.udpHash+16)
	s.unix = s.sock("unix_sock", afUnix, sockStream, 0, tcpListen, s.unixHash+300*8)
	s.packet = s.sock("packet_sock", afPacket, sockRaw, 0, tcpClose, s.member(s.net, "net.packet.sklist"))
	s.netlink = s.sock("netlink_sock", afNetlink, sockRaw, 0, tcpClose, 0)
	s.set(s.netlink, "netlink_sock.bound", 1)
	s.set(s.netlink, "netlink_sock.portid", 77)
	s.put64(s.member(s.bucket, "bucket_table.buckets")+8, uint64(s.member(s.netlink, "netlink_sock.node"))|1)
	s.put64(s.member(s.netlink, "netlink_sock.node"), uint64(s.bucket)|1)
	s.name = s.object("unix_address")
	s.set(s.unix, "unix_sock.addr", uint64(s.name))
	s.set(s.name, "unix_address.len", 2+5)
	s.write(s.member(s.name, "unix_address.name")+2, "\x00a\x00\xffb")
	s.put64(open, 1<<s.nfds-1)
	return s
}

// sock makes a socket of the first process and puts it into the chain at head.
func (s *fakeSocks) sock(kind string, family, typ, protocol, state uint64, head hypervisor.VirtAddr) hypervisor.VirtAddr {
	sk, socket, file := s.object(kind), s.object("socket_alloc"), s.object("file")
	put16 := func(path string, v uint64) {
		binary.LittleEndian.PutUint16(s.ram.b[s.member(sk, path)-fakeBase:], uint16(v))
	}
	put16("sock_common.skc_family", family)
	put16("sock_common.skc_num", 8080)
	put16("sock.sk_type", typ)
	put16("sock.sk_protocol", protocol)
	s.ram.b[s.member(sk, "sock_common.skc_state")-fakeBase] = byte(state)
	s.set(sk, "sock_common.skc_net.net", uint64(s.net))
	s.set(sk, "sock.sk_socket", uint64(socket))
	s.set(sk, "sock.sk_uid", 1000)
	s.write(s.member(sk, "sock_common.skc_rcv_saddr"), "\x7f\x00\x00\x01")
	if kind == "inet_sock" {
		put16("inet_sock.inet_sport", 0x901f)
	}
	if head != 0 {
		node := s.member(sk, "sock_common.skc_node")
		s.put64(node, s.u64(head))
		s.put64(node+8, uint64(head))
		s.put64(head, uint64(node))
	}
	s.set(socket, "socket_alloc.socket.file", uint64(file))
	s.set(socket, "socket_alloc.socket.sk", uint64(sk))
	s.set(socket, "socket_alloc.vfs_inode.i_ino", uint64(500+s.nfds))
	s.set(file, "file.f_op", uint64(s.vars["socket_file_ops"]))
	s.set(file, "file.private_data", uint64(socket))
	s.put64(s.fds+hypervisor.VirtAddr(8*s.nfds), uint64(file))
	s.nfds++
	return sk
}

func (s *fakeSocks) list(t testing.TB) SocketList {
	t.Helper()
	s.guest.Flush()
	l, err := s.guest.Sockets(t.Context(), SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestFakeSockets(t *testing.T) {
	l := newFakeSocks(t).list(t)
	if !l.Coverage.Complete() || len(l.Sockets) != 6 {
		t.Fatalf("%d sockets, %v", len(l.Sockets), l.Coverage.Problems())
	}
	for _, s := range l.Sockets {
		if s.Hidden || s.PID != 1 || s.UID != 1000 || s.NetNS != 4026531840 || s.Inode != uint64(500+s.FD) ||
			!slices.Equal(s.SeenIn, []View{ViewSockHash, ViewFiles}) {
			t.Errorf("%+v", s)
		}
		b, err := json.Marshal(s)
		if err != nil || s.Family == "unix" && !strings.Contains(string(b), `"local_addr":"@a@\\xffb"`) {
			t.Errorf("%s, %v", b, err)
		}
	}
}

// A lie about one table is told, ends in time and makes nothing look hidden but
// what is.
func TestLyingSockets(t *testing.T) {
	for _, c := range []struct {
		name string
		lie  func(s *fakeSocks)
		want error // in the coverage
		says string
	}{
		{"cycle of one", func(s *fakeSocks) {
			n := s.member(s.established, "sock_common.skc_node")
			s.put64(n, uint64(n))
		}, ErrCycle, "tcp"},
		{"two chains with one end", func(s *fakeSocks) {
			s.put64(s.udpHash, uint64(s.member(s.udp, "sock_common.skc_node")))
		}, ErrCycle, "udp"},
		{"wild pointer", func(s *fakeSocks) { s.put64(s.member(s.unix, "sock_common.skc_node"), 0x4141414141414140) }, ErrWild, "unix"},
		{"end of another chain", func(s *fakeSocks) { s.put64(s.ehash+8, 7<<1|1) }, nil, ""},
		{"end of another chain behind a socket", func(s *fakeSocks) { s.put64(s.member(s.established, "sock_common.skc_node"), 7<<1|1) }, ErrTorn, "tcp"},
		{"mask of all bits", func(s *fakeSocks) { s.set(s.hashinfo, "inet_hashinfo.ehash_mask", 1<<32-1) }, ErrTorn, "tcp"},
		{"mask of more than there is", func(s *fakeSocks) { s.set(s.hashinfo, "inet_hashinfo.ehash_mask", 1<<31-1) }, ErrTorn, "tcp"},
		{"mask with holes", func(s *fakeSocks) { s.set(s.udpTable, "udp_table.mask", 0x101) }, ErrTorn, "udp"},
		{"table of a socket of another family", func(s *fakeSocks) {
			s.put64(s.unixHash, uint64(s.member(s.packet, "sock_common.skc_node")))
		}, ErrTorn, "unix"},
		{"name of many bytes", func(s *fakeSocks) { s.set(s.name, "unix_address.len", 1<<31) }, ErrTorn, "socket"},
		{"tables without end", func(s *fakeSocks) { s.set(s.bucket, "bucket_table.future_tbl", uint64(s.bucket)) }, ErrLimit, "netlink"},
		{"table of 0 slots", func(s *fakeSocks) { s.set(s.bucket, "bucket_table.size", 0) }, ErrTorn, "netlink"},
		{"nested table", func(s *fakeSocks) { s.set(s.bucket, "bucket_table.nest", 2) }, errNoView, "netlink"},
		{"list of namespaces", func(s *fakeSocks) { s.put64(s.member(s.net, "net.list"), 0x1234) }, ErrWild, "namespaces"},
		{"socket of no file", func(s *fakeSocks) { s.put64(s.fds+8, uint64(fakeBase)+8) }, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newFakeSocks(t)
			c.lie(s)
			l := s.list(t)
			if c.want == nil {
				return
			}
			told := false
			for _, p := range l.Coverage.Problems() {
				told = told || strings.Contains(p.What, c.says) && strings.Contains(p.Err, c.want.Error())
			}
			if !told {
				t.Errorf("not told: %v", l.Coverage.Problems())
			}
			if len(l.Sockets) != 6 {
				t.Errorf("%d sockets", len(l.Sockets))
			}
			for _, x := range l.Sockets {
				if x.Hidden {
					t.Errorf("%+v", x)
				}
			}
		})
	}
}

// Whoever is not in its table is hidden, unless that is as it has to be.
func TestHiddenSockets(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(s *fakeSocks)
		hidden []string
	}{
		{"connection", func(s *fakeSocks) { s.put64(s.ehash+16, 2<<1|1) }, []string{"inet tcp"}},
		{"listener", func(s *fakeSocks) { s.put64(s.lhash+8, 1) }, []string{"inet6 tcp"}},
		{"udp", func(s *fakeSocks) { s.put64(s.udpHash+16, 0) }, []string{"inet udp"}},
		{"unix", func(s *fakeSocks) { s.put64(s.unixHash+300*8, 0) }, []string{"unix "}},
		{"packet", func(s *fakeSocks) { s.set(s.net, "net.packet.sklist", 0) }, []string{"packet none"}},
		{"netlink", func(s *fakeSocks) { s.put64(s.member(s.bucket, "bucket_table.buckets")+8, 0) }, []string{"netlink route"}},
		{"netlink that is not bound", func(s *fakeSocks) {
			s.put64(s.member(s.bucket, "bucket_table.buckets")+8, 0)
			s.set(s.netlink, "netlink_sock.bound", 0)
		}, nil},
		{"udp that is not bound", func(s *fakeSocks) {
			s.put64(s.udpHash+16, 0)
			s.write(s.member(s.udp, "sock_common.skc_num"), "\x00\x00")
		}, nil},
		{"connection that ends now", func(s *fakeSocks) {
			s.put64(s.ehash+16, 2<<1|1)
			s.set(s.established, "sock.sk_lock.owned", 1)
		}, nil},
		{"connection in a broken table", func(s *fakeSocks) {
			s.put64(s.ehash+16, 2<<1|1)
			s.put64(s.ehash, 0x4141414141414140)
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newFakeSocks(t)
			c.change(s)
			var hidden []string
			for _, x := range s.list(t).Sockets {
				if x.Hidden {
					hidden = append(hidden, x.Family+" "+x.Proto)
				}
			}
			if !slices.Equal(hidden, c.hidden) {
				t.Errorf("hidden: %q, want %q", hidden, c.hidden)
			}
		})
	}
}

// FuzzSockets writes lies into a guest with sockets.
func FuzzSockets(f *testing.F) {
	s := newFakeSocks(f)
	f.Add([]byte{})
	f.Add(patch(nil, s.ehash+16, uint64(s.member(s.udp, "sock_common.skc_node"))))
	f.Add(patch(nil, s.member(s.hashinfo, "inet_hashinfo.ehash_mask"), 1<<17-1))
	f.Add(patch(nil, s.member(s.established, "sock_common.skc_node"), uint64(s.ehash)))
	f.Add(patch(nil, s.member(s.bucket, "bucket_table.size"), 1<<12))
	f.Add(patch(nil, s.member(s.name, "unix_address.len"), 109))
	f.Add(patch(nil, s.member(s.net, "net.list"), uint64(s.ehash)))
	f.Add(patch(nil, s.fds, uint64(s.fds)))
	f.Fuzz(func(t *testing.T, lies []byte) {
		s := newFakeSocks(t)
		for len(lies) >= 12 {
			at := uint64(binary.LittleEndian.Uint32(lies)) % (fakeSize - 8)
			binary.LittleEndian.PutUint64(s.ram.b[at:], binary.LittleEndian.Uint64(lies[4:]))
			lies = lies[12:]
		}
		s.guest.Flush()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		l, err := s.guest.Sockets(ctx, SocketOptions{})
		if ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) {
			t.Error("it took longer than 20 s")
		}
		for i := range l.Sockets {
			if _, err := json.Marshal(&l.Sockets[i]); err != nil {
				t.Error(err)
			}
		}
	})
}

func FuzzSockVsock(f *testing.F) {
	addr := func(port, cid uint32) []byte {
		b := binary.LittleEndian.AppendUint32(nil, afVsock)
		b = binary.LittleEndian.AppendUint32(b, port)
		return append(binary.LittleEndian.AppendUint32(b, cid), 0, 0, 0, 0)
	}
	two := append(addr(5000, 3), addr(6000, vmaddrAny)...)
	f.Add(two)
	f.Add(append(make([]byte, 8), two...))
	f.Fuzz(func(t *testing.T, b []byte) {
		local, port, remote, remotePort := sockVsock(b)
		for _, off := range []int{0, 8} {
			if len(b) == off+len(two) && string(b[off:]) == string(two) && (local != "3" || port != 5000 || remote != "*" || remotePort != 6000) {
				t.Errorf("%q %d %q %d", local, port, remote, remotePort)
			}
		}
	})
}
