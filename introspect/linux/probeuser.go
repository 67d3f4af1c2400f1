package linux

import (
	"context"
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Bounds of uprobes.
const (
	maxUprobes        = 256 << 10
	maxProbeConsumers = 64 << 10 // of one uprobe
)

// uprobeFields is where the facts of uprobes lie.
type uprobeFields struct {
	tree                              hypervisor.VirtAddr
	node, inode, offset, consumers    field
	span                              span
	handler, retHandler, next, link   field // in struct uprobe_consumer
	consumerSpan                      span
	inodeSB, inodeDentry, dentryAlias field
	mounts, mntInstance, mntVFS       field
}

func (u *uprobeFields) facts() []fact {
	return []fact{
		{&u.node, 0, must, []string{"uprobe.rb_node"}},
		{&u.inode, 8, must, []string{"uprobe.inode"}},
		{&u.offset, 8, must, []string{"uprobe.offset"}},
		{&u.consumers, 0, must, []string{"uprobe.consumers"}}, // a pointer until 6.11, then a list
		{&u.handler, 8, must, []string{"uprobe_consumer.handler"}},
		{&u.retHandler, 8, may, []string{"uprobe_consumer.ret_handler"}},
		{&u.next, 8, may, []string{"uprobe_consumer.next"}},
		{&u.link, 16, may, []string{"uprobe_consumer.cons_node"}},
		{&u.inodeSB, 8, want, []string{"inode.i_sb"}},
		{&u.inodeDentry, 8, want, []string{"inode.i_dentry"}},
		{&u.dentryAlias, 16, want, []string{"dentry.d_u.d_alias", "dentry.d_alias"}},
		{&u.mounts, 0, want, []string{"super_block.s_mounts"}}, // a list until 6.17, then a pointer
		{&u.mntInstance, 16, may, []string{"mount.mnt_instance"}},
		{&u.mntVFS, 0, want, []string{"mount.mnt"}},
	}
}

func (u *uprobeFields) symbols() []symbol {
	return []symbol{{&u.tree, must, []string{"uprobes_tree"}}}
}

func (u *uprobeFields) finish(types) {
	u.span = spanOf(u.inode, u.offset, u.consumers)
	u.consumerSpan = spanOf(u.handler, u.retHandler, u.next, u.link)
}

// uprobes walks the tree of uprobes: a hook is one consumer of one.
func (l *hookLook) uprobes(ctx context.Context) error {
	f, err := tableOf[uprobeFields](l.g, l.cov)
	if err != nil {
		return err
	}
	bad := func(at hypervisor.VirtAddr, err error) { l.cov.Add("uprobe", at, err) }
	return l.g.walkRBTree(ctx, f.tree, maxUprobes, bad, func(node hypervisor.VirtAddr) bool {
		at := node - hypervisor.VirtAddr(f.node.off)
		if err := l.uprobe(ctx, f, at); err != nil {
			bad(at, err)
			return ctx.Err() == nil && !errors.Is(err, ErrLimit)
		}
		return true
	})
}

func (l *hookLook) uprobe(ctx context.Context, f *uprobeFields, at hypervisor.VirtAddr) error {
	r := &l.g.r
	o, _, err := r.object(nil, at, f.span)
	if err != nil {
		return err
	}
	h := Hook{Kind: HookUprobe, Offset: o.uint(f.offset)}
	if h.Path, err = l.inodePath(ctx, f, o.ptr(f.inode)); err != nil {
		l.cov.Add("path of a uprobe", at, err)
	}
	h.Target = fmt.Sprintf("%s+%#x", h.Path, h.Offset)
	consumer := func(c hypervisor.VirtAddr) (object, error) {
		if err := r.check(at, c, 8); err != nil {
			return object{}, err
		}
		o, _, err := r.object(nil, c, f.consumerSpan)
		if err != nil {
			return o, err
		}
		h := h
		h.KernelAddress = c
		fn := o.ptr(f.handler)
		if ret := o.ptr(f.retHandler); ret != 0 {
			// Both are there, but one that only follows returns says so by
			// having no other, or by its handler's own ways.
			h.Flags = []string{"return"}
			if fn == 0 {
				fn = ret
			}
		}
		return o, l.add(h, fn)
	}
	if f.consumers.size == 16 && f.link.ok {
		_, err := r.walkList(ctx, o.at(f.consumers), forward, maxProbeConsumers, func(node, _ hypervisor.VirtAddr) (links, error) {
			c, err := consumer(node - hypervisor.VirtAddr(f.link.off))
			return c.links(f.link), err
		})
		return err
	}
	seen := map[hypervisor.VirtAddr]struct{}{}
	for c := o.ptr(f.consumers); c != 0; {
		if _, ok := seen[c]; ok {
			return &PointerError{Where: at, Value: c, Err: ErrCycle}
		}
		if len(seen) >= maxProbeConsumers {
			return fmt.Errorf("consumers of a uprobe: %w: %d", ErrLimit, maxProbeConsumers)
		}
		seen[c] = struct{}{}
		o, err := consumer(c)
		if err != nil {
			return err
		}
		c = o.ptr(f.next)
	}
	return nil
}

// inodePath returns a path of the struct inode at addr: by its first name, in one
// of the mounts of its file system.
func (l *hookLook) inodePath(ctx context.Context, f *uprobeFields, addr hypervisor.VirtAddr) (string, error) {
	r := &l.g.r
	if err := r.check(addr, addr, 8); err != nil {
		return "", err
	}
	if !f.inodeSB.ok || !f.inodeDentry.ok || !f.dentryAlias.ok || !f.mounts.ok || !f.mntVFS.ok {
		return "", errNoPaths
	}
	sb, err := r.follow(addr, f.inodeSB)
	if err != nil {
		return "", err
	}
	mnt, err := r.follow(sb, field{off: f.mounts.off, size: 8, ok: true})
	if err != nil {
		return "", err
	}
	if f.mounts.size == 16 {
		if mnt == sb+hypervisor.VirtAddr(f.mounts.off) {
			return "", errors.New("its file system is mounted nowhere")
		}
		mnt -= hypervisor.VirtAddr(f.mntInstance.off)
	}
	path := ""
	err = r.walkHList(ctx, addr+hypervisor.VirtAddr(f.inodeDentry.off), maxAliases, func(alias hypervisor.VirtAddr) error {
		var err error
		if path, err = l.paths.of(filePath{mnt: mnt + hypervisor.VirtAddr(f.mntVFS.off), dentry: alias - hypervisor.VirtAddr(f.dentryAlias.off)}); err == nil {
			err = errNamed
		}
		return err
	})
	if errors.Is(err, errNamed) {
		err = nil
	}
	return path, err
}

// errNamed ends a walk that has found a name.
var errNamed = errors.New("found")
