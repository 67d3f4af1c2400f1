package linux

import (
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
)

// bpfPlaceFields is where the facts of what programs are attached to lie. Those
// of links are in the structure of that kind of link, whose struct bpf_link lies
// at the field that ends in Link.
type bpfPlaceFields struct {
	cgLink, cgCgroup, cgType                field
	trLink, trType                          field
	rawLink, rawEvent, rawTracepoint        field
	tpName                                  field
	iterLink, iterInfo, iterReg, iterTarget field
	nsLink, nsNet, nsType                   field
	xdpLink, xdpDev                         field
	tcxLink, tcxDev                         field
	kitLink, kitDev                         field
	perfLink, perfFile                      field
	multiLink, multiAddrs, multiCount       field
	upLink, upPath                          field
	nfLink, nfNet, nfPF, nfHook             field
	opsLink, opsMap                         field
	sockLink, sockMap                       field
	devName, devNet, devList, devXDP        field // in struct net_device
	xdpProg                                 field // in struct bpf_xdp_entity
	xdpStates, xdpSize                      uint64
	netInum, netList, netDevs               field // in struct net
	eventProg, eventCall                    field // in struct perf_event
	callName, callFlags                     field // in struct trace_event_call
	flagTracepoint, flagKprobe, flagUprobe  uint64
	tpeCall, tpeProbes                      field // in struct trace_probe_event
	probeList                               field // in struct trace_probe
	kpProbe, kpSymbol, kpAddr               field // in struct trace_kprobe
	tuProbe, tuPath                         field // in struct trace_uprobe
	cssChildren, cssSibling, cgroupSelf     field
	rootCgroup                              field // in struct cgroup_root
	bpfProgs                                field // the first head of the lists in struct cgroup
	bpfHeads, bpfHeadSize                   uint64
	plNode, plProg, plLink                  field // in struct bpf_prog_list
	plSpan                                  span
	sbList, sbMagic, sbInodes, sbMounts     field
	inodeList, inodePrivate, inodeDentry    field
	dentryAlias                             field
	mntInstance, mntVFS                     field
}

func (p *bpfPlaceFields) facts() []fact {
	return []fact{
		{&p.cgLink, 0, may, []string{"bpf_cgroup_link.link"}},
		{&p.cgCgroup, 8, may, []string{"bpf_cgroup_link.cgroup"}},
		{&p.cgType, 4, may, []string{"bpf_cgroup_link.type"}}, // until 6.17
		{&p.trLink, 0, may, []string{"bpf_tracing_link.link"}},
		{&p.trType, 4, may, []string{"bpf_tracing_link.attach_type"}},
		{&p.rawLink, 0, may, []string{"bpf_raw_tp_link.link"}},
		{&p.rawEvent, 8, may, []string{"bpf_raw_tp_link.btp"}},
		{&p.rawTracepoint, 8, may, []string{"bpf_raw_event_map.tp"}},
		{&p.tpName, 8, may, []string{"tracepoint.name"}},
		{&p.iterLink, 0, may, []string{"bpf_iter_link.link"}},
		{&p.iterInfo, 8, may, []string{"bpf_iter_link.tinfo"}},
		{&p.iterReg, 8, may, []string{"bpf_iter_target_info.reg_info"}},
		{&p.iterTarget, 8, may, []string{"bpf_iter_reg.target"}},
		{&p.nsLink, 0, may, []string{"bpf_netns_link.link"}},
		{&p.nsNet, 8, may, []string{"bpf_netns_link.net"}},
		{&p.nsType, 4, may, []string{"bpf_netns_link.type"}},
		{&p.xdpLink, 0, may, []string{"bpf_xdp_link.link"}},
		{&p.xdpDev, 8, may, []string{"bpf_xdp_link.dev"}},
		{&p.tcxLink, 0, may, []string{"tcx_link.link"}},
		{&p.tcxDev, 8, may, []string{"tcx_link.dev"}},
		{&p.kitLink, 0, may, []string{"netkit_link.link"}},
		{&p.kitDev, 8, may, []string{"netkit_link.dev"}},
		{&p.perfLink, 0, may, []string{"bpf_perf_link.link"}},
		{&p.perfFile, 8, may, []string{"bpf_perf_link.perf_file"}},
		{&p.multiLink, 0, may, []string{"bpf_kprobe_multi_link.link"}},
		{&p.multiAddrs, 8, may, []string{"bpf_kprobe_multi_link.addrs"}},
		{&p.multiCount, 4, may, []string{"bpf_kprobe_multi_link.cnt"}},
		{&p.upLink, 0, may, []string{"bpf_uprobe_multi_link.link"}},
		{&p.upPath, 16, may, []string{"bpf_uprobe_multi_link.path"}},
		{&p.nfLink, 0, may, []string{"bpf_nf_link.link"}},
		{&p.nfNet, 8, may, []string{"bpf_nf_link.net"}},
		{&p.nfPF, 1, may, []string{"bpf_nf_link.hook_ops.pf"}},
		{&p.nfHook, 4, may, []string{"bpf_nf_link.hook_ops.hooknum"}},
		{&p.opsLink, 0, may, []string{"bpf_struct_ops_link.link"}},
		{&p.opsMap, 8, may, []string{"bpf_struct_ops_link.map"}},
		{&p.sockLink, 0, may, []string{"sockmap_link.link"}},
		{&p.sockMap, 8, may, []string{"sockmap_link.map"}},
		{&p.devName, 16, may, []string{"net_device.name"}},
		{&p.devNet, 8, may, []string{"net_device.nd_net.net"}},
		{&p.devList, 16, may, []string{"net_device.dev_list"}},
		{&p.devXDP, 0, may, []string{"net_device.xdp_state"}}, // since 5.9
		{&p.xdpProg, 8, may, []string{"bpf_xdp_entity.prog"}},
		{&p.netInum, 4, may, []string{"net.ns.inum"}},
		{&p.netList, 16, may, []string{"net.list"}},
		{&p.netDevs, 16, may, []string{"net.dev_base_head"}},
		{&p.eventProg, 8, may, []string{"perf_event.prog"}}, // since 5.15
		{&p.eventCall, 8, may, []string{"perf_event.tp_event"}},
		{&p.callName, 8, may, []string{"trace_event_call.name"}},
		{&p.callFlags, 4, may, []string{"trace_event_call.flags"}},
		{&p.tpeCall, 0, may, []string{"trace_probe_event.call"}},
		{&p.tpeProbes, 16, may, []string{"trace_probe_event.probes"}},
		{&p.probeList, 16, may, []string{"trace_probe.list"}},
		{&p.kpProbe, 0, may, []string{"trace_kprobe.tp"}},
		{&p.kpSymbol, 8, may, []string{"trace_kprobe.symbol"}},
		{&p.kpAddr, 8, may, []string{"trace_kprobe.rp.kp.addr"}},
		{&p.tuProbe, 0, may, []string{"trace_uprobe.tp"}},
		{&p.tuPath, 8, may, []string{"trace_uprobe.filename"}},
		{&p.cssChildren, 16, may, []string{"cgroup_subsys_state.children"}},
		{&p.cssSibling, 16, may, []string{"cgroup_subsys_state.sibling"}},
		{&p.cgroupSelf, 0, may, []string{"cgroup.self"}},
		{&p.rootCgroup, 0, may, []string{"cgroup_root.cgrp"}},
		{&p.bpfProgs, 8, may, []string{"cgroup.bpf.progs"}}, // CONFIG_CGROUP_BPF
		{&p.plNode, 0, may, []string{"bpf_prog_list.node"}},
		{&p.plProg, 8, may, []string{"bpf_prog_list.prog"}},
		{&p.plLink, 8, may, []string{"bpf_prog_list.link"}},
		{&p.sbList, 16, may, []string{"super_block.s_list"}},
		{&p.sbMagic, 8, may, []string{"super_block.s_magic"}},
		{&p.sbInodes, 16, may, []string{"super_block.s_inodes"}},
		{&p.sbMounts, 0, may, []string{"super_block.s_mounts"}}, // a list until 6.17, then a pointer
		{&p.inodeList, 16, may, []string{"inode.i_sb_list"}},
		{&p.inodePrivate, 8, may, []string{"inode.i_private"}},
		{&p.inodeDentry, 8, may, []string{"inode.i_dentry"}},
		{&p.dentryAlias, 16, may, []string{"dentry.d_u.d_alias", "dentry.d_alias"}},
		{&p.mntInstance, 16, may, []string{"mount.mnt_instance"}},
		{&p.mntVFS, 0, may, []string{"mount.mnt"}},
	}
}

func (p *bpfPlaceFields) finish(t types) {
	if f, err := t.Field("net_device.xdp_state"); err == nil && f.Elem > 0 && f.Len < 16 {
		p.xdpStates, p.xdpSize = f.Len, f.Elem
	}
	if f, err := t.Field("cgroup.bpf.progs"); err == nil && f.Len < 256 && (f.Elem == 8 || f.Elem == 16) {
		p.bpfHeads, p.bpfHeadSize = f.Len, f.Elem
	}
	for name, to := range map[string]*uint64{
		"TRACE_EVENT_FL_TRACEPOINT": &p.flagTracepoint, "TRACE_EVENT_FL_KPROBE": &p.flagKprobe, "TRACE_EVENT_FL_UPROBE": &p.flagUprobe,
	} {
		if v, err := t.EnumValue("", name); err == nil {
			*to = uint64(v)
		}
	}
	p.plSpan = spanOf(p.plNode, p.plProg, p.plLink)
}

// follow reads the pointer at f in the structure at at, which must be one.
func (r *reader) follow(at hypervisor.VirtAddr, f field) (hypervisor.VirtAddr, error) {
	if !f.ok {
		return 0, profile.ErrNoType
	}
	p, err := r.ptr(at + hypervisor.VirtAddr(f.off))
	if err == nil {
		err = r.check(at, p, 1)
	}
	return p, err
}

// text reads the string that the pointer at f in the structure at at leads to.
func (r *reader) text(at hypervisor.VirtAddr, f field, limit int) (string, error) {
	p, err := r.follow(at, f)
	if err != nil {
		return "", err
	}
	return r.cstring(p, limit)
}

// device names the struct net_device at dev.
func (l *bpfLook) device(a *BPFAttachment, dev hypervisor.VirtAddr) error {
	p := &l.f.places
	if !p.devName.ok {
		return profile.ErrNoType
	}
	var name [16]byte // IFNAMSIZ
	if err := l.g.r.full(name[:], dev+hypervisor.VirtAddr(p.devName.off)); err != nil {
		return err
	}
	a.Interface = cString(name[:])
	net, err := l.g.r.follow(dev, p.devNet)
	if err != nil {
		return err
	}
	return l.net(a, net)
}

// net tells the number of the struct net at net.
func (l *bpfLook) net(a *BPFAttachment, net hypervisor.VirtAddr) (err error) {
	if p := &l.f.places; p.netInum.ok {
		a.Net, err = l.g.r.u32(net + hypervisor.VirtAddr(p.netInum.off))
	}
	return err
}

// perfEvent tells what the struct perf_event at event counts.
func (l *bpfLook) perfEvent(a *BPFAttachment, event hypervisor.VirtAddr) error {
	p, r := &l.f.places, &l.g.r
	if !p.eventCall.ok || !p.callFlags.ok {
		return nil
	}
	call, err := r.ptr(event + hypervisor.VirtAddr(p.eventCall.off))
	if err != nil || call == 0 {
		return err // an event of the hardware, or a clock's
	}
	if err := r.check(event, call, 8); err != nil {
		return err
	}
	flags, err := r.u32(call + hypervisor.VirtAddr(p.callFlags.off))
	if err != nil {
		return err
	}
	switch f := uint64(flags); {
	case f&p.flagTracepoint != 0:
		tp, err := r.follow(call, p.callName) // in a union with the name
		if err == nil {
			a.Function, err = r.text(tp, p.tpName, maxAttachName)
		}
		return err
	case f&(p.flagKprobe|p.flagUprobe) != 0:
		if !p.tpeCall.ok || !p.tpeProbes.ok || !p.probeList.ok {
			return nil
		}
		first, err := r.follow(call-hypervisor.VirtAddr(p.tpeCall.off), p.tpeProbes)
		if err != nil {
			return err
		}
		probe := first - hypervisor.VirtAddr(p.probeList.off)
		if f&p.flagUprobe != 0 {
			if !p.tuProbe.ok {
				return nil
			}
			a.Path, err = r.text(probe-hypervisor.VirtAddr(p.tuProbe.off), p.tuPath, maxPathBytes)
			return err
		}
		return l.kernelProbe(a, probe-hypervisor.VirtAddr(p.kpProbe.off))
	}
	a.Function, err = r.text(call, p.callName, maxAttachName)
	return err
}

// kernelProbe names the function of the struct trace_kprobe at probe.
func (l *bpfLook) kernelProbe(a *BPFAttachment, probe hypervisor.VirtAddr) error {
	p, r := &l.f.places, &l.g.r
	if !p.kpProbe.ok || !p.kpSymbol.ok {
		return nil
	}
	name, err := r.ptr(probe + hypervisor.VirtAddr(p.kpSymbol.off))
	if err != nil {
		return err
	}
	if name != 0 {
		a.Function, err = r.cstring(name, maxAttachName)
		return err
	}
	addr, err := r.follow(probe, p.kpAddr)
	if errors.Is(err, profile.ErrNoType) {
		return nil
	}
	if err == nil {
		a.Function = l.function(addr)
	}
	return err
}

// function names the kernel's function at addr.
func (l *bpfLook) function(addr hypervisor.VirtAddr) string {
	name, off, ok := l.g.kernel.SymbolAt(addr)
	switch {
	case !ok:
		return fmt.Sprintf("%#x", uint64(addr))
	case off != 0:
		return fmt.Sprintf("%s+%#x", name, off)
	}
	return name
}
