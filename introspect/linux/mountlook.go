package linux

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
)

// Bounds of mounts.
const (
	maxMounts    = 256 << 10 // of a namespace; the kernel's own default is 100,000
	maxMountText = 4096      // bytes of a source or of a filesystem's name: PATH_MAX
)

// mountTable is where the facts of mounts lie that paths do not need.
type mountTable struct {
	nsList, nsTree                         field // in struct mnt_namespace
	list, node, id, devname, ns, flags, sb field // in struct mount
	span                                   span
	sbDev, sbFlags, sbType, sbSubtype      field // in struct super_block
	sbSpan                                 span
	typeName                               field
}

func (m *mountTable) facts() []fact {
	return []fact{
		{&m.nsList, 16, may, []string{"mnt_namespace.list"}},          // until 6.7
		{&m.nsTree, 8, may, []string{"mnt_namespace.mounts.rb_node"}}, // since 6.8
		{&m.list, 16, may, []string{"mount.mnt_list"}},
		{&m.node, 0, may, []string{"mount.mnt_node"}},
		{&m.id, 4, want, []string{"mount.mnt_id"}},
		{&m.devname, 8, want, []string{"mount.mnt_devname"}},
		{&m.ns, 8, want, []string{"mount.mnt_ns"}},
		{&m.flags, 4, want, []string{"mount.mnt.mnt_flags"}},
		{&m.sb, 8, want, []string{"mount.mnt.mnt_sb"}},
		{&m.sbDev, 4, want, []string{"super_block.s_dev"}},
		{&m.sbFlags, 8, want, []string{"super_block.s_flags"}},
		{&m.sbType, 8, want, []string{"super_block.s_type"}},
		{&m.sbSubtype, 8, want, []string{"super_block.s_subtype"}},
		{&m.typeName, 8, want, []string{"file_system_type.name"}},
	}
}

func (m *mountTable) symbols() []symbol { return nil }

func (m *mountTable) finish(types) {
	m.span = spanOf(m.list, m.id, m.devname, m.ns, m.flags, m.sb)
	m.sbSpan = spanOf(m.sbDev, m.sbFlags, m.sbType, m.sbSubtype)
}

// asTree and asList report how this kernel keeps the mounts of a namespace.
func (m *mountTable) asTree() bool { return m.nsTree.ok && m.node.ok }
func (m *mountTable) asList() bool { return m.nsList.ok && m.list.ok }

// Mounts lists what is mounted in the mount namespace of the guest's first
// process, also what its root directory does not show: the filesystem that the
// kernel booted from.
//
// It returns an error that wraps profile.ErrNoType when this kernel's mounts
// cannot be found.
func (g *Guest) Mounts(ctx context.Context) (MountList, error) {
	return g.mounts(ctx, func() (hypervisor.VirtAddr, error) {
		t := &g.lay.task
		first, err := g.r.readLinks(g.sym.initTask + hypervisor.VirtAddr(t.tasks.off))
		if err != nil {
			return 0, err
		}
		s := taskScan{left: maxThreads(g.mem)}
		for _, at := range []hypervisor.VirtAddr{first.next - hypervisor.VirtAddr(t.tasks.off), g.sym.initTask} {
			task, terr := s.read(&g.r, t, at)
			if terr == nil && task.nsproxy != 0 {
				return task.nsproxy, nil
			}
			err = errors.Join(err, terr)
		}
		return 0, fmt.Errorf("first process: %w", errors.Join(ErrGone, err))
	})
}

// ProcessMounts lists what is mounted in the mount namespace of p: see Mounts. It
// returns ErrGone when p is no longer where it was listed.
func (g *Guest) ProcessMounts(ctx context.Context, p Process) (MountList, error) {
	return g.mounts(ctx, func() (hypervisor.VirtAddr, error) {
		s := taskScan{left: maxThreads(g.mem)}
		t, err := s.read(&g.r, &g.lay.task, p.KernelAddress)
		switch {
		case err != nil:
			return 0, fmt.Errorf("process %d: %w: %w", p.PID, ErrGone, err)
		case int(t.pid) != p.PID || int(t.tgid) != p.TGID || t.nsproxy == 0:
			return 0, fmt.Errorf("process %d: %w", p.PID, ErrGone)
		}
		return t.nsproxy, nil
	})
}

// mounts lists the mounts of the nsproxy that proxy returns.
func (g *Guest) mounts(ctx context.Context, proxy func() (hypervisor.VirtAddr, error)) (MountList, error) {
	var best MountList
	for i := range g.rounds() {
		at, err := proxy()
		if err == nil {
			err = g.r.check(at, at, 8)
		}
		if err != nil {
			return MountList{Mounts: []Mount{}, Coverage: &introspect.Coverage{}}, fmt.Errorf("list mounts: %w", err)
		}
		l, err := g.mountLook(ctx, at)
		if err != nil {
			return l, fmt.Errorf("list mounts: %w", err)
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

// mountWalk is one look at the mounts of a namespace.
type mountWalk struct {
	g     *Guest
	ctx   context.Context
	t     *mountTable
	cov   *introspect.Coverage
	paths *paths
	ns    hypervisor.VirtAddr
	inum  uint32
	found []Mount
	types map[hypervisor.VirtAddr]mountSuper
}

// mountSuper is what a mount tells of its super_block.
type mountSuper struct {
	device  DeviceNumber
	kind    string
	options string
}

func (g *Guest) mountLook(ctx context.Context, nsproxy hypervisor.VirtAddr) (MountList, error) {
	w := &mountWalk{
		g: g, ctx: ctx, cov: &introspect.Coverage{}, found: []Mount{}, paths: newPaths(&g.r, &g.lay.fs),
		types: map[hypervisor.VirtAddr]mountSuper{},
	}
	l := MountList{Mounts: w.found, Coverage: w.cov}
	t, err := tableOf[mountTable](g, w.cov)
	if err != nil {
		return l, err
	}
	if !g.lay.ns.mnt.ok || !g.lay.fs.usable() || !t.asTree() && !t.asList() {
		return l, fmt.Errorf("%w: mnt_namespace, mount", profile.ErrNoType)
	}
	w.t = t
	if w.ns, err = g.r.ptr(nsproxy + hypervisor.VirtAddr(g.lay.ns.mnt.off)); err == nil {
		err = g.r.check(nsproxy, w.ns, 8)
	}
	if err == nil && g.lay.ns.mntInum.ok {
		w.inum, err = g.r.u32(w.ns + hypervisor.VirtAddr(g.lay.ns.mntInum.off))
	}
	if err == nil {
		if t.asTree() {
			err = w.tree()
		} else {
			err = w.list()
		}
	}
	if err != nil && ctx.Err() == nil {
		w.cov.Add("mount namespace", w.ns, err)
	}
	slices.SortFunc(w.found, func(a, b Mount) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.KernelAddress, b.KernelAddress))
	})
	l.Mounts = w.found
	return l, ctx.Err()
}

// list walks the list of mounts that kernels up to 6.7 keep.
func (w *mountWalk) list() error {
	_, err := w.g.r.walkList(w.ctx, w.ns+hypervisor.VirtAddr(w.t.nsList.off), forward, maxMounts, func(node, last hypervisor.VirtAddr) (links, error) {
		l, err := w.g.r.readLinks(node)
		if err == nil {
			w.mount(last, node-hypervisor.VirtAddr(w.t.list.off))
		}
		return l, err
	})
	return err
}

// tree walks the tree of mounts that kernels since 6.8 keep.
func (w *mountWalk) tree() error {
	bad := func(at hypervisor.VirtAddr, err error) { w.cov.Add("tree of mounts", at, err) }
	return w.g.walkRBTree(w.ctx, w.ns+hypervisor.VirtAddr(w.t.nsTree.off), maxMounts, bad, func(node hypervisor.VirtAddr) bool {
		w.mount(w.ns, node-hypervisor.VirtAddr(w.t.node.off))
		return true
	})
}

// mount adds the struct mount at addr, to which the structure at from points.
func (w *mountWalk) mount(from, addr hypervisor.VirtAddr) {
	if err := w.g.r.check(from, addr, 8); err != nil {
		w.cov.Add("mount", from, err)
		return
	}
	o, _, err := w.g.r.object(nil, addr, w.t.span)
	if err != nil {
		w.cov.Add("mount", addr, err)
		return
	}
	flags := o.uint(w.t.flags)
	if flags&mntCursor != 0 && !w.t.asTree() {
		return
	}
	if ns := o.ptr(w.t.ns); w.t.ns.ok && ns != w.ns {
		w.cov.Add("mount", addr, &PointerError{Where: addr, Value: ns, Err: ErrTorn})
		return
	}
	m := Mount{Namespace: w.inum, ID: int(o.int32(w.t.id)), Options: mountOptions(flags), KernelAddress: addr}
	bad := func(what string, err error) {
		if err != nil {
			w.cov.Add(what+" of a mount", addr, err)
		}
	}
	if m.Source, err = w.g.r.cstring(o.ptr(w.t.devname), maxMountText); w.t.devname.ok && o.ptr(w.t.devname) != 0 {
		bad("source", err)
	}
	s, err := w.super(addr, o.ptr(w.t.sb))
	bad("filesystem", err)
	m.Device, m.FSType, m.SuperOptions = s.device, s.kind, s.options
	at, err := w.paths.mount(addr)
	if err != nil {
		bad("place", err)
		w.found = append(w.found, m)
		return
	}
	m.Target = "/"
	if at.parent != addr {
		m.Target, err = w.paths.of(filePath{mnt: at.parent + hypervisor.VirtAddr(w.g.lay.fs.mntVFS.off), dentry: at.at})
		bad("target", err)
	}
	if m.ParentID, err = w.idOf(at.parent); err != nil {
		bad("parent", err)
	}
	m.Root, err = w.rootOf(at)
	bad("root", err)
	w.found = append(w.found, m)
}

// idOf returns the id of the struct mount at addr.
func (w *mountWalk) idOf(addr hypervisor.VirtAddr) (int, error) {
	if !w.t.id.ok {
		return 0, nil
	}
	if err := w.g.r.check(addr, addr, 8); err != nil {
		return 0, err
	}
	id, err := w.g.r.u32(addr + hypervisor.VirtAddr(w.t.id.off))
	return int(int32(id)), err
}

// rootOf returns the path, in its filesystem, of what is mounted.
func (w *mountWalk) rootOf(m mount) (string, error) {
	var parts []string
	size, suffix := 0, ""
	at, from := m.root, m.addr
	for range maxPathSteps {
		if w.paths.left--; w.paths.left < 0 {
			return "", fmt.Errorf("paths: %w: %d steps", ErrLimit, maxLookSteps)
		}
		d, err := w.paths.dentry(at, from)
		if err != nil {
			return "", err
		}
		if d.parent == at {
			return join(parts, size) + suffix, nil
		}
		if len(parts) == 0 && d.unhashed {
			suffix = "//deleted" // as dentry_path in fs/d_path.c writes it
		}
		parts = append(parts, d.name)
		if size += len(d.name) + 1; size > maxPathBytes {
			return "", fmt.Errorf("path: %w: %d bytes", ErrLimit, maxPathBytes)
		}
		from, at = at, d.parent
	}
	return "", fmt.Errorf("path: %w: %d steps", ErrLimit, maxPathSteps)
}

// super reads the super_block at addr.
func (w *mountWalk) super(from, addr hypervisor.VirtAddr) (mountSuper, error) {
	if s, ok := w.types[addr]; ok {
		return s, nil
	}
	if !w.t.sb.ok {
		return mountSuper{}, nil // told as a missing fact
	}
	if err := w.g.r.check(from, addr, 8); err != nil {
		return mountSuper{}, err
	}
	o, _, err := w.g.r.object(nil, addr, w.t.sbSpan)
	if err != nil {
		return mountSuper{}, err
	}
	s := mountSuper{device: DeviceNumber(o.uint(w.t.sbDev)), options: superOptions(o.uint(w.t.sbFlags))}
	kind := o.ptr(w.t.sbType)
	if err := w.g.r.check(addr, kind, 8); err != nil || !w.t.typeName.ok {
		return s, err
	}
	name, err := w.g.r.ptr(kind + hypervisor.VirtAddr(w.t.typeName.off))
	if err == nil {
		s.kind, err = w.g.r.cstring(name, nameMax)
	}
	if sub := o.ptr(w.t.sbSubtype); err == nil && sub != 0 {
		var text string
		if text, err = w.g.r.cstring(sub, nameMax); text != "" {
			s.kind += "." + text
		}
	}
	if err == nil {
		w.types[addr] = s
	}
	return s, err
}
