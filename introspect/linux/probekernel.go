package linux

import (
	"context"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Bounds of kprobes.
const (
	kprobeTableSize = 64 // KPROBE_TABLE_SIZE, kernel/kprobes.c
	maxKprobes      = 256 << 10
)

// Flags of a struct kprobe (include/linux/kprobes.h).
const (
	kprobeFlagGone      = 1 // KPROBE_FLAG_GONE
	kprobeFlagDisabled  = 2 // KPROBE_FLAG_DISABLED
	kprobeFlagOptimized = 4 // KPROBE_FLAG_OPTIMIZED
	kprobeFlagFtrace    = 8 // KPROBE_FLAG_FTRACE
)

// probeFields is where the facts of kprobes lie.
type probeFields struct {
	table, aggregate, returns          hypervisor.VirtAddr
	node, list, addr, pre, post, flags field
	span                               span
	retProbe, retHandler, retEntry     field // in struct kretprobe
	retSpan                            span
}

func (p *probeFields) facts() []fact {
	return []fact{
		{&p.node, 16, must, []string{"kprobe.hlist"}},
		{&p.list, 16, must, []string{"kprobe.list"}},
		{&p.addr, 8, must, []string{"kprobe.addr"}},
		{&p.pre, 8, must, []string{"kprobe.pre_handler"}},
		{&p.post, 8, may, []string{"kprobe.post_handler"}},
		{&p.flags, 4, want, []string{"kprobe.flags"}},
		{&p.retProbe, 0, may, []string{"kretprobe.kp"}},
		{&p.retHandler, 8, may, []string{"kretprobe.handler"}},
		{&p.retEntry, 8, may, []string{"kretprobe.entry_handler"}},
	}
}

func (p *probeFields) symbols() []symbol {
	return []symbol{
		{&p.table, must, []string{"kprobe_table"}},
		{&p.aggregate, want, []string{"aggr_pre_handler"}},
		{&p.returns, may, []string{"pre_handler_kretprobe"}},
	}
}

func (p *probeFields) finish(types) {
	p.span = spanOf(p.node, p.list, p.addr, p.pre, p.post, p.flags)
	p.retSpan = spanOf(p.retHandler, p.retEntry)
}

// kprobes walks the table of kprobes. Several at one address are a list behind
// one that only calls them (aggr_pre_handler).
func (l *hookLook) kprobes(ctx context.Context) error {
	f, err := tableOf[probeFields](l.g, l.cov)
	if err != nil {
		return err
	}
	for i := range kprobeTableSize {
		head := f.table + hypervisor.VirtAddr(8*i)
		err := l.g.r.walkHList(ctx, head, maxKprobes, func(node hypervisor.VirtAddr) error {
			o, _, err := l.g.r.object(nil, node-hypervisor.VirtAddr(f.node.off), f.span)
			if err != nil {
				return err
			}
			if pre := o.ptr(f.pre); pre == 0 || pre != f.aggregate {
				return l.kprobe(f, o, o)
			}
			_, err = l.g.r.walkList(ctx, o.at(f.list), forward, maxKprobes, func(node, _ hypervisor.VirtAddr) (links, error) {
				one, _, err := l.g.r.object(nil, node-hypervisor.VirtAddr(f.list.off), f.span)
				if err == nil {
					err = l.kprobe(f, one, o)
				}
				return one.links(f.list), err
			})
			return err
		})
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			l.cov.Add("table of kprobes", head, err)
		}
	}
	return nil
}

// kprobe adds the struct kprobe o. parent is the one that is in the table: o, or
// the one that calls it.
func (l *hookLook) kprobe(f *probeFields, o, parent object) error {
	addr := o.ptr(f.addr)
	if addr == 0 {
		addr = parent.ptr(f.addr)
	}
	h := Hook{Kind: HookKprobe, Address: addr, Target: l.code.owner(addr).String(), KernelAddress: o.addr}
	fn := o.ptr(f.pre)
	if fn == 0 {
		fn = o.ptr(f.post)
	}
	if f.returns != 0 && fn == f.returns && f.retProbe.ok && f.retHandler.ok {
		r, _, err := l.g.r.object(nil, o.addr-hypervisor.VirtAddr(f.retProbe.off), f.retSpan)
		if err != nil {
			return err
		}
		h.Flags = append(h.Flags, "return")
		if fn = r.ptr(f.retHandler); fn == 0 {
			fn = r.ptr(f.retEntry)
		}
	}
	own, shared := o.uint(f.flags), parent.uint(f.flags)
	switch {
	case own&kprobeFlagGone != 0:
		h.Flags = append(h.Flags, "gone")
	case (own|shared)&kprobeFlagDisabled != 0:
		h.Flags = append(h.Flags, "disabled")
	}
	if shared&kprobeFlagOptimized != 0 {
		h.Flags = append(h.Flags, "optimized")
	}
	if shared&kprobeFlagFtrace != 0 {
		h.Flags = append(h.Flags, "ftrace")
	}
	if err := l.g.r.check(o.addr, addr, 1); err != nil {
		return fmt.Errorf("kprobe: %w", err)
	}
	return l.add(h, fn)
}
