package linux

import (
	"context"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Bounds of where programs are looked for.
const (
	maxBPFCgroups    = 64 << 10
	maxBPFPerCgroup  = 1024 // BPF_CGROUP_MAX_PROGS is 64, of one type
	maxBPFNamespaces = 64 << 10
	maxBPFDevices    = 256 << 10 // of all namespaces
)

// readCgroups finds the programs of each control group of the unified
// hierarchy. Those that links attach are known from the links.
func (l *bpfLook) readCgroups(ctx context.Context) error {
	p := &l.f.places
	if l.f.cgroupRoot == 0 || !p.rootCgroup.ok || !p.bpfProgs.ok || p.bpfHeads == 0 || !p.plNode.ok || !p.plProg.ok ||
		!p.cgroupSelf.ok || !p.cssChildren.ok || !p.cssSibling.ok {
		return nil
	}
	r := &l.g.r
	todo := []hypervisor.VirtAddr{l.f.cgroupRoot + hypervisor.VirtAddr(p.rootCgroup.off)}
	seen := map[hypervisor.VirtAddr]struct{}{todo[0]: {}}
	heads := make([]byte, p.bpfHeads*p.bpfHeadSize)
	for len(todo) > 0 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		cgroup := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if err := r.full(heads, cgroup+hypervisor.VirtAddr(p.bpfProgs.off)); err != nil {
			l.cov.Add("programs of a control group", cgroup, err)
			continue
		}
		for i, first := range pointers(heads) {
			at := cgroup + hypervisor.VirtAddr(p.bpfProgs.off) + hypervisor.VirtAddr(8*i)
			step := int(p.bpfHeadSize / 8)
			if i%step != 0 || first == 0 || first == at {
				continue
			}
			if err := l.cgroupPrograms(ctx, cgroup, at, uint64(i/step)); err != nil {
				l.cov.Add("programs of a control group", cgroup, err)
			}
		}
		self := cgroup + hypervisor.VirtAddr(p.cgroupSelf.off)
		_, err := r.walkList(ctx, self+hypervisor.VirtAddr(p.cssChildren.off), forward, maxBPFCgroups, func(node, _ hypervisor.VirtAddr) (links, error) {
			child := node - hypervisor.VirtAddr(p.cssSibling.off+p.cgroupSelf.off)
			if _, ok := seen[child]; !ok {
				if len(seen) >= maxBPFCgroups {
					return links{}, fmt.Errorf("control groups: %w: %d", ErrLimit, maxBPFCgroups)
				}
				seen[child] = struct{}{}
				todo = append(todo, child)
			}
			return r.readLinks(node)
		})
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			l.cov.Add("children of a control group", cgroup, err)
		}
	}
	return nil
}

// cgroupPrograms reads the list of the struct bpf_prog_list whose head lies at
// head: the programs of cgroup for the i-th kind of attachment.
func (l *bpfLook) cgroupPrograms(ctx context.Context, cgroup, head hypervisor.VirtAddr, i uint64) error {
	p, r := &l.f.places, &l.g.r
	visit := func(node hypervisor.VirtAddr) error {
		o, _, err := r.object(nil, node-hypervisor.VirtAddr(p.plNode.off), p.plSpan)
		if err != nil {
			return err
		}
		prog := o.ptr(p.plProg)
		if prog == 0 {
			return nil // a link's
		}
		known := l.progs[prog]
		if known == nil {
			return fmt.Errorf("%w: a program that there is not at %#x", ErrTorn, uint64(prog))
		}
		a := BPFAttachment{Type: bpfName(l.f.cgroupTypes, i)}
		a.Cgroup, err = l.cgroups.cgroupPath(cgroup)
		known.Attachments = append(known.Attachments, a)
		return err
	}
	if p.bpfHeadSize == 8 {
		return r.walkHList(ctx, head, maxBPFPerCgroup, visit)
	}
	// Until 6.0.
	_, err := r.walkList(ctx, head, forward, maxBPFPerCgroup, func(node, _ hypervisor.VirtAddr) (links, error) {
		if err := visit(node); err != nil {
			return links{}, err
		}
		return r.readLinks(node)
	})
	return err
}

// readInterfaces finds the XDP programs of each network interface that are not
// a link's.
func (l *bpfLook) readInterfaces(ctx context.Context) error {
	p, r := &l.f.places, &l.g.r
	if l.f.netList == 0 || !p.netList.ok || !p.netDevs.ok || !p.devList.ok || !p.devXDP.ok || !p.xdpProg.ok || p.xdpSize == 0 {
		return nil
	}
	left := maxBPFDevices
	states := make([]byte, p.xdpStates*p.xdpSize)
	device := func(node, _ hypervisor.VirtAddr) (links, error) {
		if left--; left < 0 {
			return links{}, fmt.Errorf("network interfaces: %w: %d", ErrLimit, maxBPFDevices)
		}
		dev := node - hypervisor.VirtAddr(p.devList.off)
		if err := r.full(states, dev+hypervisor.VirtAddr(p.devXDP.off)); err != nil {
			return links{}, err
		}
		o := object{data: states}
		for i := range p.xdpStates {
			prog := o.ptr(field{off: i*p.xdpSize + p.xdpProg.off, size: 8, ok: true})
			if prog == 0 {
				continue
			}
			a := BPFAttachment{Type: "xdp"}
			known := l.progs[prog]
			if known == nil {
				l.cov.Add("program of a network interface", dev, fmt.Errorf("%w: a program that there is not at %#x", ErrTorn, uint64(prog)))
				continue
			}
			if err := l.device(&a, dev); err != nil {
				l.cov.Add("network interface", dev, err)
			}
			known.Attachments = append(known.Attachments, a)
		}
		return r.readLinks(node)
	}
	_, err := r.walkList(ctx, l.f.netList, forward, maxBPFNamespaces, func(node, _ hypervisor.VirtAddr) (links, error) {
		net := node - hypervisor.VirtAddr(p.netList.off)
		if _, err := r.walkList(ctx, net+hypervisor.VirtAddr(p.netDevs.off), forward, maxBPFDevices, device); err != nil {
			if ctx.Err() != nil {
				return links{}, ctx.Err()
			}
			l.cov.Add("network interfaces", net, err)
		}
		return r.readLinks(node)
	})
	return err
}
