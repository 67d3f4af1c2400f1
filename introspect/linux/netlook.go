package linux

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// Bounds of network interfaces.
const (
	maxNetNamespaces = 16 << 10
	maxInterfaces    = 64 << 10  // of all namespaces
	maxNetAddresses  = 256 << 10 // of all interfaces
	maxMAC           = 32        // MAX_ADDR_LEN, include/linux/netdevice.h
)

// netTable is where the facts of network interfaces lie.
type netTable struct {
	initNet, namespaces                    hypervisor.VirtAddr
	inum, list, devices                    field // in struct net
	netSpan                                span
	devList, name, index, flags, mtu, kind field // in struct net_device
	addr, addrLen, oper, state, ip4, ip6   field
	devSpan                                span
	ifaList                                field // in struct in_device
	ifaNext, ifaLocal, ifaPrefix           field // in struct in_ifaddr
	ifaSpan                                span
	addrList                               field // in struct inet6_dev
	in6List, in6Addr, in6Prefix            field // in struct inet6_ifaddr
	in6Span                                span
}

func (n *netTable) facts() []fact {
	return []fact{
		{&n.inum, 4, want, []string{"net.ns.inum"}},
		{&n.list, 16, want, []string{"net.list"}},
		{&n.devices, 16, must, []string{"net.dev_base_head"}},
		{&n.devList, 16, must, []string{"net_device.dev_list"}},
		{&n.name, 16, must, []string{"net_device.name"}},
		{&n.index, 4, want, []string{"net_device.ifindex"}},
		{&n.flags, 4, want, []string{"net_device.flags"}},
		{&n.mtu, 4, want, []string{"net_device.mtu"}},
		{&n.kind, 2, want, []string{"net_device.type"}},
		{&n.addr, 8, want, []string{"net_device.dev_addr"}},
		{&n.addrLen, 1, want, []string{"net_device.addr_len"}},
		{&n.oper, 0, want, []string{"net_device.operstate"}}, // of 1 byte until 6.8
		{&n.state, 8, want, []string{"net_device.state"}},
		{&n.ip4, 8, want, []string{"net_device.ip_ptr"}},
		{&n.ip6, 8, may, []string{"net_device.ip6_ptr"}}, // CONFIG_IPV6
		{&n.ifaList, 8, want, []string{"in_device.ifa_list"}},
		{&n.ifaNext, 8, want, []string{"in_ifaddr.ifa_next"}},
		{&n.ifaLocal, 4, want, []string{"in_ifaddr.ifa_local"}},
		{&n.ifaPrefix, 1, want, []string{"in_ifaddr.ifa_prefixlen"}},
		{&n.addrList, 16, may, []string{"inet6_dev.addr_list"}},
		{&n.in6List, 16, may, []string{"inet6_ifaddr.if_list"}},
		{&n.in6Addr, 16, may, []string{"inet6_ifaddr.addr"}},
		{&n.in6Prefix, 4, may, []string{"inet6_ifaddr.prefix_len"}},
	}
}

func (n *netTable) symbols() []symbol {
	return []symbol{{&n.initNet, must, []string{"init_net"}}, {&n.namespaces, want, []string{"net_namespace_list"}}}
}

func (n *netTable) finish(types) {
	n.netSpan = spanOf(n.inum, n.list, n.devices)
	n.devSpan = spanOf(n.devList, n.name, n.index, n.flags, n.mtu, n.kind, n.addr, n.addrLen, n.oper, n.state, n.ip4, n.ip6)
	n.ifaSpan = spanOf(n.ifaNext, n.ifaLocal, n.ifaPrefix)
	n.in6Span = spanOf(n.in6List, n.in6Addr, n.in6Prefix)
}

// Interfaces lists the network interfaces of all network namespaces, with their
// addresses.
//
// It returns an error that wraps profile.ErrNoType or profile.ErrNoSymbol for a
// kernel without a network; others come only from ctx.
func (g *Guest) Interfaces(ctx context.Context) (InterfaceList, error) {
	var best InterfaceList
	for i := range g.rounds() {
		l, err := g.interfaceLook(ctx)
		if err != nil {
			return l, fmt.Errorf("list interfaces: %w", err)
		}
		if i == 0 || l.Coverage.Total() <= best.Coverage.Total() {
			best = l
		}
		if l.Coverage.Complete() {
			break
		}
	}
	return best, nil
}

func (g *Guest) interfaceLook(ctx context.Context) (InterfaceList, error) {
	w := &netWalk{g: g, ctx: ctx, cov: &introspect.Coverage{}, addresses: maxNetAddresses}
	w.found = []Interface{}
	t, err := tableOf[netTable](g, w.cov)
	if err != nil {
		return InterfaceList{Interfaces: w.found, Coverage: w.cov}, err
	}
	w.t = t
	if t.namespaces == 0 || !t.list.ok {
		w.namespace(t.initNet)
	} else {
		_, err := g.r.walkList(ctx, t.namespaces, forward, maxNetNamespaces, func(node, last hypervisor.VirtAddr) (links, error) {
			net := node - hypervisor.VirtAddr(t.list.off)
			l, err := g.r.readLinks(node)
			if err == nil {
				w.namespace(net)
			}
			return l, err
		})
		if err != nil && ctx.Err() == nil {
			w.cov.Add("network namespaces", t.namespaces, err)
		}
	}
	slices.SortFunc(w.found, func(a, b Interface) int {
		if a.InitNamespace != b.InitNamespace {
			if a.InitNamespace {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Index, b.Index), cmp.Compare(a.KernelAddress, b.KernelAddress))
	})
	return InterfaceList{Interfaces: w.found, Coverage: w.cov}, ctx.Err()
}

// netWalk is one look at the interfaces.
type netWalk struct {
	g         *Guest
	ctx       context.Context
	t         *netTable
	cov       *introspect.Coverage
	found     []Interface
	addresses int // that may still be met
	buf       []byte
}

// namespace lists the interfaces of the struct net at addr.
func (w *netWalk) namespace(addr hypervisor.VirtAddr) {
	ns, _, err := w.g.r.object(nil, addr, w.t.netSpan)
	if err != nil {
		w.cov.Add("network namespace", addr, err)
		return
	}
	inum := uint32(ns.uint(w.t.inum))
	head := ns.at(w.t.devices)
	_, err = w.g.r.walkList(w.ctx, head, forward, max(maxInterfaces-len(w.found), 0), func(node, _ hypervisor.VirtAddr) (links, error) {
		dev := node - hypervisor.VirtAddr(w.t.devList.off)
		if err := w.g.r.check(head, dev, 8); err != nil {
			return links{}, err
		}
		o, _, err := w.g.r.object(nil, dev, w.t.devSpan)
		if err != nil {
			return links{}, err
		}
		i := w.device(o)
		i.Namespace, i.InitNamespace = inum, addr == w.t.initNet
		w.found = append(w.found, i)
		return o.links(w.t.devList), nil
	})
	if err != nil && w.ctx.Err() == nil {
		w.cov.Add(fmt.Sprintf("interfaces of network namespace %d", inum), addr, err)
	}
}

// device decodes the struct net_device in o.
func (w *netWalk) device(o object) Interface {
	t := w.t
	flags := o.uint(t.flags)
	i := Interface{
		Index: int(o.int32(t.index)), Name: cString(o.bytes(t.name)), Type: netType(o.uint(t.kind)), MTU: int(o.uint(t.mtu)),
		Flags: netFlagNames(flags), Up: flags&iffUp != 0, State: netState(o.uint(t.oper), o.uint(t.state)),
		Addresses: []netip.Prefix{}, KernelAddress: o.addr,
	}
	if n := o.uint(t.addrLen); n > maxMAC {
		w.cov.Add("interface", o.addr, fmt.Errorf("%w: a link address of %d bytes", ErrTorn, n))
	} else if at := o.ptr(t.addr); n > 0 && t.addr.ok {
		mac := make([]byte, n)
		err := w.g.r.check(o.addr, at, 1)
		if err == nil {
			err = w.g.r.full(mac, at)
		}
		if err != nil {
			w.cov.Add("link address of an interface", o.addr, err)
		} else {
			i.MAC = net.HardwareAddr(mac).String()
		}
	}
	if at := o.ptr(t.ip4); at != 0 {
		if err := w.ip4(at, &i); err != nil {
			w.cov.Add("IPv4 addresses of an interface", o.addr, err)
		}
	}
	if at := o.ptr(t.ip6); at != 0 {
		if err := w.ip6(at, &i); err != nil && w.ctx.Err() == nil {
			w.cov.Add("IPv6 addresses of an interface", o.addr, err)
		}
	}
	slices.SortFunc(i.Addresses, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return i
}

// more counts an address.
func (w *netWalk) more() error {
	if w.addresses--; w.addresses < 0 {
		return fmt.Errorf("%w: %d addresses", ErrLimit, maxNetAddresses)
	}
	return nil
}

// ip4 adds the addresses of the struct in_device at addr.
func (w *netWalk) ip4(addr hypervisor.VirtAddr, i *Interface) error {
	t := w.t
	if !t.ifaList.ok || !t.ifaNext.ok || !t.ifaLocal.ok || !t.ifaPrefix.ok {
		return nil // told as a missing fact
	}
	if err := w.g.r.check(addr, addr, 8); err != nil {
		return err
	}
	at, err := w.g.r.ptr(addr + hypervisor.VirtAddr(t.ifaList.off))
	if err != nil {
		return err
	}
	seen := map[hypervisor.VirtAddr]struct{}{}
	for last := addr; at != 0; {
		if err := w.more(); err != nil {
			return err
		}
		if err := w.g.r.check(last, at, 8); err != nil {
			return err
		}
		if _, ok := seen[at]; ok {
			return &PointerError{Where: last, Value: at, Err: ErrCycle}
		}
		seen[at] = struct{}{}
		var o object
		if o, w.buf, err = w.g.r.object(w.buf, at, t.ifaSpan); err != nil {
			return err
		}
		ip, _ := netip.AddrFromSlice(o.bytes(t.ifaLocal))
		prefix := int(o.uint(t.ifaPrefix))
		if prefix > 32 {
			return fmt.Errorf("%w: a prefix of %d bits", ErrTorn, prefix)
		}
		i.Addresses = append(i.Addresses, netip.PrefixFrom(ip, prefix))
		last, at = at, o.ptr(t.ifaNext)
	}
	return nil
}

// ip6 adds the addresses of the struct inet6_dev at addr.
func (w *netWalk) ip6(addr hypervisor.VirtAddr, i *Interface) error {
	t := w.t
	if !t.addrList.ok || !t.in6List.ok || !t.in6Addr.ok || !t.in6Prefix.ok {
		return nil
	}
	if err := w.g.r.check(addr, addr, 8); err != nil {
		return err
	}
	head := addr + hypervisor.VirtAddr(t.addrList.off)
	_, err := w.g.r.walkList(w.ctx, head, forward, maxNetAddresses, func(node, last hypervisor.VirtAddr) (links, error) {
		if err := w.more(); err != nil {
			return links{}, err
		}
		at := node - hypervisor.VirtAddr(t.in6List.off)
		if err := w.g.r.check(last, at, 8); err != nil {
			return links{}, err
		}
		o, buf, err := w.g.r.object(w.buf, at, t.in6Span)
		w.buf = buf
		if err != nil {
			return links{}, err
		}
		ip, _ := netip.AddrFromSlice(o.bytes(t.in6Addr))
		prefix := o.uint(t.in6Prefix)
		if prefix > 128 {
			return links{}, fmt.Errorf("%w: a prefix of %d bits", ErrTorn, prefix)
		}
		i.Addresses = append(i.Addresses, netip.PrefixFrom(ip, int(prefix)))
		return o.links(t.in6List), nil
	})
	return err
}
