package linux

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
)

// Bounds of netfilter.
const (
	maxNetHooks      = 1024 // MAX_HOOK_COUNT, net/netfilter/core.c, at one point
	maxNetHookSpaces = 16 << 10
	maxNetHookDevs   = 64 << 10 // of all namespaces
	maxNetPoints     = 16       // of one family
)

// nfFields is where the facts of netfilter's hooks lie.
type nfFields struct {
	nets                   hypervisor.VirtAddr
	netList, inum, devs    field // in struct net
	families               []nfFamily
	devList, devName       field // in struct net_device
	ingress, egress        field
	devSpan                span
	count, hooks           field // in struct nf_hook_entries
	entryHook              field // in struct nf_hook_entry
	entrySize              uint64
	opsPriority, opsPoint  field // in struct nf_hook_ops
	opsHook                field
	opsType                field // a bit-field of 8 bits
	opsSpan                span
	typeTables, typeBPF    uint64
	dummy                  hypervisor.VirtAddr
	ipv4, ipv6, arp, bridg field
}

// nfFamily is a family's hook points in struct net.
type nfFamily struct {
	pf, points, off uint64
}

func (n *nfFields) facts() []fact {
	return []fact{
		{&n.netList, 16, must, []string{"net.list"}},
		{&n.inum, 4, want, []string{"net.ns.inum"}},
		{&n.devs, 16, want, []string{"net.dev_base_head"}},
		{&n.ipv4, 0, may, []string{"net.nf.hooks_ipv4"}},
		{&n.ipv6, 0, may, []string{"net.nf.hooks_ipv6"}},
		{&n.arp, 0, may, []string{"net.nf.hooks_arp"}},
		{&n.bridg, 0, may, []string{"net.nf.hooks_bridge"}},
		{&n.devList, 16, want, []string{"net_device.dev_list"}},
		{&n.devName, 16, want, []string{"net_device.name"}},
		{&n.ingress, 8, may, []string{"net_device.nf_hooks_ingress"}},
		{&n.egress, 8, may, []string{"net_device.nf_hooks_egress"}}, // since 5.16
		{&n.count, 2, must, []string{"nf_hook_entries.num_hook_entries"}},
		{&n.hooks, 0, must, []string{"nf_hook_entries.hooks"}},
		{&n.entryHook, 8, must, []string{"nf_hook_entry.hook"}},
		{&n.opsHook, 8, must, []string{"nf_hook_ops.hook"}},
		{&n.opsPriority, 4, must, []string{"nf_hook_ops.priority"}},
		{&n.opsPoint, 4, may, []string{"nf_hook_ops.hooknum"}},
	}
}

func (n *nfFields) symbols() []symbol {
	return []symbol{
		{&n.nets, must, []string{"net_namespace_list"}},
		{&n.dummy, may, []string{"dummy_ops"}},
	}
}

func (n *nfFields) finish(t types) {
	if size, err := t.Size("nf_hook_entry"); err == nil && size >= 8 && size <= 64 && n.entryHook.off+8 <= size {
		n.entrySize = size
	}
	for _, fam := range []struct {
		pf uint64
		f  field
	}{{nfprotoIPv4, n.ipv4}, {nfprotoIPv6, n.ipv6}, {nfprotoARP, n.arp}, {nfprotoBridge, n.bridg}} {
		if points := fam.f.size / 8; fam.f.ok && points <= maxNetPoints {
			n.families = append(n.families, nfFamily{pf: fam.pf, points: points, off: fam.f.off})
		}
	}
	// Since 5.14.
	if f, err := t.Field("nf_hook_ops.hook_ops_type"); err == nil && f.BitSize == 8 && f.BitOffset == 0 && f.Offset < maxOffset {
		n.opsType = field{off: f.Offset, size: 1, ok: true}
	}
	for name, to := range map[string]*uint64{"NF_HOOK_OP_NF_TABLES": &n.typeTables, "NF_HOOK_OP_BPF": &n.typeBPF} {
		if v, err := t.EnumValue("nf_hook_ops_type", name); err == nil && v > 0 {
			*to = uint64(v)
		}
	}
	n.opsSpan = spanOf(n.opsHook, n.opsPriority, n.opsPoint, n.opsType)
	n.devSpan = spanOf(n.devList, n.devName, n.ingress, n.egress)
}

// netfilter walks the hook points of every network namespace.
func (l *hookLook) netfilter(ctx context.Context) error {
	f, err := tableOf[nfFields](l.g, l.cov)
	if err != nil {
		return err
	}
	if f.entrySize == 0 || len(f.families) == 0 {
		return fmt.Errorf("%w: nf_hook_entry", profile.ErrNoType)
	}
	left := maxNetHookDevs
	_, err = l.g.r.walkList(ctx, f.nets, forward, maxNetHookSpaces, func(node, _ hypervisor.VirtAddr) (links, error) {
		net := node - hypervisor.VirtAddr(f.netList.off)
		if err := l.netHooks(ctx, f, net, &left); err != nil {
			return links{}, err
		}
		return l.g.r.readLinks(node)
	})
	return err
}

// netHooks adds the hooks of the struct net at net. left is how many network
// interfaces may yet be looked at.
func (l *hookLook) netHooks(ctx context.Context, f *nfFields, net hypervisor.VirtAddr, left *int) error {
	r := &l.g.r
	h := Hook{Kind: HookNetfilter}
	if f.inum.ok {
		var err error
		if h.Net, err = r.u32(net + hypervisor.VirtAddr(f.inum.off)); err != nil {
			return err
		}
	}
	for _, fam := range f.families {
		heads := make([]byte, 8*fam.points)
		at := net + hypervisor.VirtAddr(fam.off)
		if err := r.full(heads, at); err != nil {
			return err
		}
		for i, entries := range pointers(heads) {
			h.Target = netfilterPoint(fam.pf, uint64(i))
			if err := l.netEntries(f, h, at, entries); err != nil {
				l.cov.Add("hooks of "+h.Target, entries, err)
			}
		}
	}
	if !f.devs.ok || !f.devList.ok || !f.devName.ok || !f.ingress.ok && !f.egress.ok {
		return nil
	}
	_, err := r.walkList(ctx, net+hypervisor.VirtAddr(f.devs.off), forward, maxNetHookDevs, func(node, _ hypervisor.VirtAddr) (links, error) {
		if *left--; *left < 0 {
			return links{}, fmt.Errorf("network interfaces: %w: %d", ErrLimit, maxNetHookDevs)
		}
		o, _, err := r.object(nil, node-hypervisor.VirtAddr(f.devList.off), f.devSpan)
		if err != nil {
			return links{}, err
		}
		h := h
		h.Interface = cString(o.bytes(f.devName))
		for i, point := range []field{f.ingress, f.egress} {
			h.Target = netfilterPoint(nfprotoNetdev, uint64(i))
			if err := l.netEntries(f, h, o.addr, o.ptr(point)); err != nil {
				l.cov.Add("hooks of "+h.Target, o.addr, err)
			}
		}
		return o.links(f.devList), nil
	})
	return err
}

// netEntries adds the hooks of the struct nf_hook_entries at at, which where
// holds: functions, and behind them as many pointers to struct nf_hook_ops.
func (l *hookLook) netEntries(f *nfFields, h Hook, where, at hypervisor.VirtAddr) error {
	r := &l.g.r
	if at == 0 {
		return nil
	}
	if err := r.check(where, at, 8); err != nil {
		return err
	}
	var head [2]byte
	if err := r.full(head[:], at+hypervisor.VirtAddr(f.count.off)); err != nil {
		return err
	}
	n := uint64(binary.LittleEndian.Uint16(head[:]))
	if n > maxNetHooks {
		return fmt.Errorf("%w: %d", ErrLimit, n)
	}
	b := make([]byte, n*(f.entrySize+8))
	if err := r.full(b, at+hypervisor.VirtAddr(f.hooks.off)); err != nil {
		return err
	}
	entries := object{data: b}
	for i, ops := range pointers(b[n*f.entrySize:]) {
		if ops == f.dummy && f.dummy != 0 {
			continue // one that is being taken away
		}
		h := h
		fn := entries.ptr(field{off: uint64(i)*f.entrySize + f.entryHook.off, size: 8, ok: true})
		if err := r.check(at, ops, 8); err != nil {
			return err
		}
		o, _, err := r.object(nil, ops, f.opsSpan)
		if err != nil {
			return err
		}
		h.KernelAddress, h.Priority = ops, int(o.int32(f.opsPriority))
		if t := o.uint(f.opsType); t != 0 {
			switch t {
			case f.typeTables:
				h.Flags = []string{"nf_tables"}
			case f.typeBPF:
				h.Flags = []string{"bpf"}
			}
		}
		// What is called and what was registered are kept apart.
		replaced := o.ptr(f.opsHook) != fn
		if replaced {
			h.Flags = append(h.Flags, "replaced")
		}
		if err := l.add(h, fn); err != nil {
			return err
		}
		if replaced {
			l.hooks[len(l.hooks)-1].Suspicious = true
		}
	}
	return nil
}
