package linux

import (
	"context"
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
)

func (l *bpfLook) readLinks(ctx context.Context) error {
	f := l.f
	if f.linkIDR == 0 || !f.linkID.ok || !f.linkType.ok {
		return nil // before 5.8
	}
	return l.walkIDR(ctx, "eBPF link", f.linkIDR, func(id uint64, at hypervisor.VirtAddr) error {
		o, buf, err := l.g.r.object(l.buf, at, f.linkSpan)
		l.buf = buf
		if err != nil {
			return err
		}
		switch got := o.uint(f.linkID); got {
		case id:
		case 0:
			return nil // not settled yet
		default:
			return fmt.Errorf("%w: link %d stands for %d", ErrTorn, got, id)
		}
		k := &BPFLink{ID: uint32(id), Type: bpfName(f.linkTypes, o.uint(f.linkType)), KernelAddress: at}
		l.links[at] = k
		attach := o.uint(f.linkAttach)
		prog := l.progs[o.ptr(f.linkProg)]
		if prog != nil {
			k.ProgramID = prog.ID
		} else if p := o.ptr(f.linkProg); p != 0 {
			return fmt.Errorf("%w: link %d has a program that there is not at %#x", ErrTorn, id, uint64(p))
		}
		if k.Type == "cgroup" || attach != 0 { // 0 is a type of control groups, and that of links without one
			k.Attachment.Type = bpfName(f.attachTypes, attach)
		}
		err = l.place(k, prog, at)
		if k.Attachment.Type == "" && (k.Type == "xdp" || k.Type == "perf_event") {
			k.Attachment.Type = k.Type // as later kernels have it
		}
		if prog != nil {
			prog.Attachments = append(prog.Attachments, k.Attachment)
		}
		if errors.Is(err, profile.ErrNoType) {
			return nil // a kind of link that this kernel's types do not tell of
		}
		return err
	})
}

// place tells what the link at at, which is k, is attached to.
func (l *bpfLook) place(k *BPFLink, prog *BPFProgram, at hypervisor.VirtAddr) error {
	p, r, a := &l.f.places, &l.g.r, &k.Attachment
	// In the structure that holds the link.
	in := func(link field) hypervisor.VirtAddr { return at - hypervisor.VirtAddr(link.off) }
	typed := func(link, f field) error {
		if !f.ok {
			return nil // the link itself says it
		}
		v, err := r.u32(in(link) + hypervisor.VirtAddr(f.off))
		if err == nil {
			a.Type = bpfName(l.f.attachTypes, uint64(v))
		}
		return err
	}
	device := func(link, dev field) error {
		d, err := r.ptr(in(link) + hypervisor.VirtAddr(dev.off))
		if err != nil || d == 0 || !dev.ok {
			return err // the interface is gone
		}
		if err := r.check(at, d, 8); err != nil {
			return err
		}
		return l.device(a, d)
	}
	switch k.Type {
	case "cgroup":
		cgroup, err := r.ptr(in(p.cgLink) + hypervisor.VirtAddr(p.cgCgroup.off))
		if err != nil || cgroup == 0 || !p.cgCgroup.ok {
			return errors.Join(err, typed(p.cgLink, p.cgType)) // detached
		}
		if a.Cgroup, err = l.cgroups.cgroupPath(cgroup); err != nil {
			return err
		}
		return typed(p.cgLink, p.cgType)
	case "tracing":
		err := typed(p.trLink, p.trType)
		if prog == nil || !l.f.function.ok {
			return err
		}
		aux, err2 := r.follow(prog.KernelAddress, l.f.aux)
		if err2 != nil {
			return errors.Join(err, err2)
		}
		name, err2 := r.ptr(aux + hypervisor.VirtAddr(l.f.function.off))
		if err2 == nil && name != 0 {
			a.Function, err2 = r.cstring(name, maxAttachName)
		}
		return errors.Join(err, err2)
	case "raw_tracepoint":
		event, err := r.follow(in(p.rawLink), p.rawEvent)
		if err != nil {
			return err
		}
		tp, err := r.follow(event, p.rawTracepoint)
		if err == nil {
			a.Function, err = r.text(tp, p.tpName, maxAttachName)
		}
		return err
	case "iter":
		info, err := r.follow(in(p.iterLink), p.iterInfo)
		if err != nil {
			return err
		}
		reg, err := r.follow(info, p.iterReg)
		if err == nil {
			a.Iterator, err = r.text(reg, p.iterTarget, maxAttachName)
		}
		return err
	case "netns", "netfilter":
		link, net := p.nsLink, p.nsNet
		if k.Type == "netfilter" {
			link, net = p.nfLink, p.nfNet
		} else if err := typed(p.nsLink, p.nsType); err != nil {
			return err
		}
		n, err := r.ptr(in(link) + hypervisor.VirtAddr(net.off))
		if err != nil || n == 0 || !net.ok {
			return err // the namespace is gone
		}
		if err := r.check(at, n, 8); err != nil {
			return err
		}
		if k.Type == "netfilter" && p.nfPF.ok && p.nfHook.ok {
			var pf [1]byte
			hook, err := r.u32(in(link) + hypervisor.VirtAddr(p.nfHook.off))
			if err == nil {
				err = r.full(pf[:], in(link)+hypervisor.VirtAddr(p.nfPF.off))
			}
			if err != nil {
				return err
			}
			a.Function = netfilterPoint(uint64(pf[0]), uint64(hook))
		}
		return l.net(a, n)
	case "xdp":
		return device(p.xdpLink, p.xdpDev)
	case "tcx":
		return device(p.tcxLink, p.tcxDev)
	case "netkit":
		return device(p.kitLink, p.kitDev)
	case "perf_event":
		file, err := r.follow(in(p.perfLink), p.perfFile)
		if err != nil {
			return err
		}
		event, err := r.follow(file, l.f.filePrivate)
		if err != nil {
			return err
		}
		return l.perfEvent(a, event)
	case "kprobe_multi":
		addrs, err := r.follow(in(p.multiLink), p.multiAddrs)
		if err != nil {
			return err
		}
		count, err := r.u32(in(p.multiLink) + hypervisor.VirtAddr(p.multiCount.off))
		if err != nil {
			return err
		}
		first, err := r.ptr(addrs)
		if err != nil {
			return err
		}
		a.Function = l.function(first)
		if count > 1 {
			a.Function = fmt.Sprintf("%s and %d more", a.Function, count-1)
		}
		return nil
	case "uprobe_multi":
		if !p.upLink.ok || !p.upPath.ok {
			return profile.ErrNoType
		}
		o, _, err := r.object(nil, in(p.upLink), spanOf(p.upPath))
		if err == nil {
			a.Path, err = l.paths.of(l.paths.pathAt(o, p.upPath))
		}
		return err
	case "struct_ops", "sockmap":
		link, f := p.opsLink, p.opsMap
		if k.Type == "sockmap" {
			link, f = p.sockLink, p.sockMap
		}
		m, err := r.follow(in(link), f)
		if err == nil {
			a.MapID, err = r.u32(m + hypervisor.VirtAddr(l.f.mapID.off))
		}
		return err
	}
	return nil
}
