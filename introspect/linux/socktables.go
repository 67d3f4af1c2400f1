package linux

import (
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

const (
	// sockUnixSlots is how many slots the tables of unix have: twice
	// UNIX_HASH_SIZE up to 5.19, UNIX_HASH_SIZE since (include/net/af_unix.h).
	sockUnixSlots = 512
	// maxNetlinks is how many buses netlink has (include/uapi/linux/netlink.h:
	// MAX_LINKS).
	maxNetlinks = 32
	// maxRhashTables bounds how often a table that is being resized leads to the
	// next one.
	maxRhashTables = 4
)

var (
	sockIP     = []uint16{afInet, afInet6}
	sockIsUnix = []uint16{afUnix}
)

// allTables walks the tables of all protocols and namespaces. Only ctx's end is
// an error.
func (w *sockWalk) allTables() error {
	if err := w.namespaces(); err != nil {
		return err
	}
	s, t := &w.f.sym, &w.f.tables
	tcp, udp := []hypervisor.VirtAddr{s.tcp}, []hypervisor.VirtAddr{s.udp}
	for _, net := range w.netOrder {
		tcp = append(tcp, w.netPointer(sockTCP|sockListen, net, t.netTCP))
		udp = append(udp, w.netPointer(sockUDP, net, t.netUDP))
	}
	steps := []func() error{
		func() error { return w.each(tcp, w.tcp) },
		func() error {
			return w.each(udp, func(a hypervisor.VirtAddr) error { return w.udp(sockUDP, "udp", a) })
		},
		func() error { return w.udp(sockUDPLite, "udplite", s.udplite) },
		func() error { return w.heads(sockRaw4, "raw", []uint16{afInet}, s.raw4, t.rawHeads) },
		func() error { return w.heads(sockRaw6, "raw6", []uint16{afInet6}, s.raw6, t.rawHeads) },
		func() error { return w.heads(sockPing, "ping", sockIP, s.ping, t.pingHeads) },
		w.netlinks, w.unixes,
		func() error { return w.lists(sockPacket, "packet", afPacket, t.netPacket) },
		func() error { return w.lists(sockXDP, "xdp", afXDP, t.netXDP) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// each calls fn once for each address but 0.
func (w *sockWalk) each(addrs []hypervisor.VirtAddr, fn func(hypervisor.VirtAddr) error) error {
	done := map[hypervisor.VirtAddr]struct{}{0: {}}
	for _, a := range addrs {
		if _, ok := done[a]; ok {
			continue
		}
		done[a] = struct{}{}
		if err := fn(a); err != nil {
			return err
		}
	}
	return nil
}

// namespaces lists the network namespaces, those of sockets that are known
// already among them.
func (w *sockWalk) namespaces() error {
	for _, s := range w.order {
		w.namespace(s.net)
	}
	t := &w.f.tables
	if w.f.sym.namespaces == 0 || !t.netList.ok {
		return nil
	}
	_, err := w.g.r.walkList(w.ctx, w.f.sym.namespaces, forward, maxSockNets, func(node, _ hypervisor.VirtAddr) (links, error) {
		w.namespace(node - hypervisor.VirtAddr(t.netList.off))
		return w.g.r.readLinks(node)
	})
	if w.ctx.Err() != nil {
		return w.ctx.Err()
	}
	if err != nil {
		w.bad("list of network namespaces", w.f.sym.namespaces, err)
	}
	return nil
}

// namespace returns the inode number of the struct net at net, 0 when there is
// none that can be believed.
func (w *sockWalk) namespace(net hypervisor.VirtAddr) uint32 {
	n, ok := w.nets[net]
	if ok || net == 0 || !w.f.tables.netInum.ok || len(w.nets) >= maxSockNets {
		return n
	}
	err := w.g.r.check(net, net, 8)
	if err == nil {
		n, err = w.g.r.u32(net + hypervisor.VirtAddr(w.f.tables.netInum.off))
	}
	if err != nil {
		w.bad("network namespace", net, err)
	} else {
		w.netOrder = append(w.netOrder, net)
	}
	w.nets[net] = n
	return n
}

// netPointer returns the pointer at f in the struct net at net; 0 when there is
// none.
func (w *sockWalk) netPointer(kind sockKind, net hypervisor.VirtAddr, f field) hypervisor.VirtAddr {
	if !f.ok {
		return 0
	}
	p, err := w.g.r.ptr(net + hypervisor.VirtAddr(f.off))
	if err == nil && p != 0 {
		err = w.g.r.check(net, p, 8)
	}
	if err != nil {
		w.broken |= kind
		w.bad("network namespace", net, err)
		return 0
	}
	return p
}

// powerOfTwo returns mask+1, and an error when that is no power of two.
func powerOfTwo(mask uint64) (uint64, error) {
	if mask >= 1<<32-1 || mask&(mask+1) != 0 {
		return 0, fmt.Errorf("%w: a mask of %#x", ErrTorn, mask)
	}
	return mask + 1, nil
}

// tcp walks the tables of the struct inet_hashinfo at addr.
func (w *sockWalk) tcp(addr hypervisor.VirtAddr) error {
	t := &w.f.tables
	if !t.ehash.ok || !t.ehashMask.ok || !t.ehashHead.ok {
		return nil
	}
	o, _, err := w.g.r.object(nil, addr, spanOf(t.ehash, t.ehashMask, t.lhash2, t.lhash2Mask))
	if err != nil {
		w.broken |= sockTCP | sockListen | sockAddrs
		w.bad("tcp", addr, err)
		return nil
	}
	one := func(table *sockTable, base hypervisor.VirtAddr, mask, stride uint64, head field) error {
		w.whole |= table.kind
		count, err := powerOfTwo(mask)
		if err != nil {
			w.broken |= table.kind
			w.bad(table.name, addr, err)
			return nil
		}
		return w.array(table, base, count, stride, head.off)
	}
	established := &sockTable{kind: sockTCP, name: "tcp", families: sockIP, node: w.f.node, endIsSlot: true}
	if err := one(established, o.ptr(t.ehash), o.uint(t.ehashMask), t.ehashSize, t.ehashHead); err != nil {
		return err
	}
	if !t.listenHead.ok || t.listenSize == 0 {
		return nil
	}
	listen := &sockTable{kind: sockListen, name: "tcp listening", families: sockIP, node: w.f.node}
	if t.listening.ok {
		if err := one(listen, addr+hypervisor.VirtAddr(t.listening.off), t.listening.size/t.listenSize-1, t.listenSize, t.listenHead); err != nil {
			return err
		}
		if !w.f.portaddrNode.ok {
			return nil
		}
		listen = &sockTable{kind: sockAddrs, name: "tcp listening by address", families: sockIP, node: w.f.portaddrNode}
	}
	lhash2 := o.ptr(t.lhash2)
	if !t.lhash2.ok || !t.lhash2Mask.ok || lhash2 == 0 {
		return nil
	}
	return one(listen, lhash2, o.uint(t.lhash2Mask), t.listenSize, t.listenHead)
}

// udp walks the struct udp_table at addr; 0: there is none.
func (w *sockWalk) udp(kind sockKind, name string, addr hypervisor.VirtAddr) error {
	t := &w.f.tables
	if addr == 0 || !t.udpHash.ok || !t.udpMask.ok || !t.udpHead.ok {
		return nil
	}
	w.whole |= kind
	o, _, err := w.g.r.object(nil, addr, spanOf(t.udpHash, t.udpMask))
	var count uint64
	if err == nil {
		if o.ptr(t.udpHash) == 0 {
			return nil // a protocol that has none yet
		}
		count, err = powerOfTwo(o.uint(t.udpMask))
	}
	if err != nil {
		w.broken |= kind
		w.bad(name, addr, err)
		return nil
	}
	table := &sockTable{kind: kind, name: name, families: sockIP, node: w.f.node}
	return w.array(table, o.ptr(t.udpHash), count, t.udpSize, t.udpHead.off)
}

// heads walks the chains of the array of heads f in the structure at addr; 0:
// there is none.
func (w *sockWalk) heads(kind sockKind, name string, families []uint16, addr hypervisor.VirtAddr, f field) error {
	if addr == 0 || !f.ok {
		return nil
	}
	w.whole |= kind
	table := &sockTable{kind: kind, name: name, families: families, node: w.f.node}
	return w.array(table, addr+hypervisor.VirtAddr(f.off), f.size/8, 8, 0)
}

// lists walks a list that each namespace has.
func (w *sockWalk) lists(kind sockKind, name string, family uint16, f field) error {
	for _, net := range w.netOrder {
		f := field{off: f.off, size: 8, ok: f.ok}
		if err := w.heads(kind, name, []uint16{family}, net, f); err != nil {
			return err
		}
	}
	return nil
}

// unixes walks the table of the sockets of unix, or that of each namespace.
func (w *sockWalk) unixes() error {
	one := func(base hypervisor.VirtAddr) error {
		return w.heads(sockUnix, "unix", sockIsUnix, base, field{size: sockUnixSlots * 8, ok: true})
	}
	if !w.f.tables.netUnix.ok {
		return one(w.f.sym.unix)
	}
	for _, net := range w.netOrder {
		if err := one(w.netPointer(sockUnix, net, w.f.tables.netUnix)); err != nil {
			return err
		}
	}
	return nil
}

// netlinks walks the tables of netlink, one for each bus.
func (w *sockWalk) netlinks() error {
	t := &w.f.tables
	if w.f.sym.netlink == 0 || !t.nlTbl.ok || t.nlSize == 0 || t.nlTbl.off+8 > t.nlSize || !w.f.nlNode.ok {
		return nil
	}
	w.whole |= sockNetlink
	lost := func(at hypervisor.VirtAddr, err error) {
		w.broken |= sockNetlink
		w.bad("netlink", at, err)
	}
	base, err := w.g.r.ptr(w.f.sym.netlink)
	if err == nil {
		err = w.g.r.check(w.f.sym.netlink, base, 8)
	}
	if err != nil {
		lost(w.f.sym.netlink, err)
		return nil
	}
	b := make([]byte, maxNetlinks*t.nlSize)
	if err := w.pages(b, base); err != nil {
		lost(base, err)
	}
	for i := range uint64(maxNetlinks) {
		o := object{addr: base + hypervisor.VirtAddr(i*t.nlSize), data: b[i*t.nlSize : (i+1)*t.nlSize]}
		at := o.ptr(t.nlTbl)
		for n := 0; at != 0; n++ {
			if n == maxRhashTables {
				lost(at, fmt.Errorf("%w: %d tables", ErrLimit, n))
				break
			}
			next, err := w.rhash(at)
			if w.ctx.Err() != nil {
				return w.ctx.Err()
			}
			if err != nil {
				lost(at, err)
				break
			}
			at = next
		}
	}
	return nil
}

// rhash walks the struct bucket_table at addr, and returns the one that is to
// take its place, if there is one (include/linux/rhashtable.h).
func (w *sockWalk) rhash(addr hypervisor.VirtAddr) (future hypervisor.VirtAddr, err error) {
	t := &w.f.tables
	if err := w.g.r.check(addr, addr, 8); err != nil {
		return 0, err
	}
	o, _, err := w.g.r.object(nil, addr, spanOf(t.rhSize, t.rhNest, t.rhFuture))
	if err != nil {
		return 0, err
	}
	if o.uint(t.rhNest) != 0 {
		// Made only when there is no memory for a flat one.
		return 0, fmt.Errorf("a nested table: %w", errNoView)
	}
	count, err := powerOfTwo(o.uint(t.rhSize) - 1)
	if err != nil || !t.rhBuckets.ok {
		return 0, err
	}
	table := &sockTable{kind: sockNetlink, name: "netlink", families: []uint16{afNetlink}, node: w.f.nlNode, locks: true}
	return o.ptr(t.rhFuture), w.array(table, addr+hypervisor.VirtAddr(t.rhBuckets.off), count, 8, 0)
}
