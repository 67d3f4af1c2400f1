package linux

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// Bounds of eBPF.
const (
	maxBPFObjects = 1 << 20
	maxBPFMaps    = 64   // MAX_USED_MAPS, include/linux/bpf_verifier.h, in one program
	maxBPFFuncs   = 1024 // BPF_MAX_SUBPROGS is 256
	maxAttachName = 256  // of a function
)

// BPF lists the guest's eBPF programs, maps and links with what they are
// attached to, where they are pinned and which processes hold them.
//
// It returns an error that wraps profile.ErrNoType or profile.ErrNoSymbol for a
// kernel without eBPF.
func (g *Guest) BPF(ctx context.Context) (BPFList, error) {
	var best BPFList
	for i := range g.rounds() {
		l, err := g.bpfLook(ctx)
		if err != nil {
			return BPFList{Coverage: &introspect.Coverage{}}, fmt.Errorf("list eBPF: %w", err)
		}
		if i == 0 || l.Coverage.Total() < best.Coverage.Total() {
			best = l
		}
		if l.Coverage.Complete() {
			break
		}
	}
	return best, nil
}

// bpfLook is one look at the guest's eBPF.
type bpfLook struct {
	g       *Guest
	f       *bpfFields
	cov     *introspect.Coverage
	boot    time.Time
	paths   *paths
	cgroups *cgroups
	progs   map[hypervisor.VirtAddr]*BPFProgram
	maps    map[hypervisor.VirtAddr]*BPFMap
	links   map[hypervisor.VirtAddr]*BPFLink
	buf     []byte
}

func (g *Guest) bpfLook(ctx context.Context) (BPFList, error) {
	cov := &introspect.Coverage{}
	f, err := tableOf[bpfFields](g, cov)
	if err != nil {
		return BPFList{}, err
	}
	l := &bpfLook{
		g: g, f: f, cov: cov, paths: newPaths(&g.r, &g.lay.fs), cgroups: newCgroups(&g.r, &g.lay.cgroup),
		progs: map[hypervisor.VirtAddr]*BPFProgram{}, maps: map[hypervisor.VirtAddr]*BPFMap{}, links: map[hypervisor.VirtAddr]*BPFLink{},
	}
	if l.boot, err = g.bootTime(); err != nil {
		cov.Add("boot time", g.sym.timekeeper, err)
	}
	for _, part := range []struct {
		what string
		walk func(context.Context) error
	}{
		{"eBPF maps", l.readMaps},
		{"eBPF programs", l.readProgs},
		{"eBPF links", l.readLinks},
		{"programs of control groups", l.readCgroups},
		{"programs of network interfaces", l.readInterfaces},
		{"pinned eBPF", l.readPins},
		{"holders of eBPF", l.readHolders},
	} {
		if err := part.walk(ctx); err != nil {
			if ctx.Err() != nil {
				return BPFList{}, ctx.Err()
			}
			cov.Add(part.what, 0, err)
		}
	}
	return l.list(), nil
}

// list sorts what was found.
func (l *bpfLook) list() BPFList {
	out := BPFList{Programs: []BPFProgram{}, Maps: []BPFMap{}, Links: []BPFLink{}, Coverage: l.cov}
	for _, p := range l.progs {
		bpfSort(p.MapIDs, p.PIDs, p.Pinned)
		p.MapIDs, p.PIDs, p.Pinned = slices.Compact(p.MapIDs), slices.Compact(p.PIDs), slices.Compact(p.Pinned)
		slices.SortFunc(p.Attachments, func(a, b BPFAttachment) int {
			return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Cgroup, b.Cgroup), cmp.Compare(a.Function, b.Function),
				cmp.Compare(a.Net, b.Net), cmp.Compare(a.Interface, b.Interface), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Iterator, b.Iterator))
		})
		p.Attachments = slices.Compact(p.Attachments)
		out.Programs = append(out.Programs, *p)
	}
	for _, m := range l.maps {
		bpfSort(nil, m.PIDs, m.Pinned)
		m.PIDs, m.Pinned = slices.Compact(m.PIDs), slices.Compact(m.Pinned)
		out.Maps = append(out.Maps, *m)
	}
	for _, k := range l.links {
		bpfSort(nil, k.PIDs, k.Pinned)
		k.PIDs, k.Pinned = slices.Compact(k.PIDs), slices.Compact(k.Pinned)
		out.Links = append(out.Links, *k)
	}
	slices.SortFunc(out.Programs, func(a, b BPFProgram) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.KernelAddress, b.KernelAddress))
	})
	slices.SortFunc(out.Maps, func(a, b BPFMap) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.KernelAddress, b.KernelAddress))
	})
	slices.SortFunc(out.Links, func(a, b BPFLink) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.KernelAddress, b.KernelAddress))
	})
	return out
}

func bpfSort(ids []uint32, pids []int, paths []string) {
	slices.Sort(ids)
	slices.Sort(pids)
	slices.Sort(paths)
}

// walkIDR calls fn for each object of the struct idr at idr.
func (l *bpfLook) walkIDR(ctx context.Context, what string, idr hypervisor.VirtAddr, fn func(id uint64, at hypervisor.VirtAddr) error) error {
	head, err := l.g.r.ptr(idr + hypervisor.VirtAddr(l.f.idrHead.off))
	if err != nil {
		return err
	}
	bad := func(at hypervisor.VirtAddr, err error) { l.cov.Add(what, at, err) }
	n := 0
	err = l.g.r.walkXArray(ctx, &l.g.lay.xa, head, 1<<31, maxBPFObjects/8, bad, func(id uint64, at hypervisor.VirtAddr) bool {
		if n++; n > maxBPFObjects {
			bad(idr, fmt.Errorf("%w: %d", ErrLimit, maxBPFObjects))
			return false
		}
		err := l.g.r.check(idr, at, 8)
		if err == nil {
			err = fn(id, at)
		}
		if err != nil {
			bad(at, err)
		}
		return true
	})
	return err
}

func (l *bpfLook) readMaps(ctx context.Context) error {
	return l.walkIDR(ctx, "eBPF map", l.f.mapIDR, func(id uint64, at hypervisor.VirtAddr) error {
		o, buf, err := l.g.r.object(l.buf, at, l.f.mapSpan)
		l.buf = buf
		if err != nil {
			return err
		}
		f := l.f
		if got := o.uint(f.mapID); got != id {
			return fmt.Errorf("%w: map %d stands for %d", ErrTorn, got, id)
		}
		l.maps[at] = &BPFMap{
			ID: uint32(id), Type: bpfName(f.mapTypes, o.uint(f.mapType)), Name: cString(o.bytes(f.mapName)),
			KeySize: uint32(o.uint(f.keySize)), ValueSize: uint32(o.uint(f.valueSize)), MaxEntries: uint32(o.uint(f.maxEntries)),
			Flags: uint32(o.uint(f.mapFlags)), Frozen: o.uint(f.frozen) != 0, KernelAddress: at,
		}
		return nil
	})
}

func (l *bpfLook) readProgs(ctx context.Context) error {
	return l.walkIDR(ctx, "eBPF program", l.f.progIDR, func(id uint64, at hypervisor.VirtAddr) error {
		f := l.f
		o, buf, err := l.g.r.object(l.buf, at, f.progSpan)
		l.buf = buf
		if err != nil {
			return err
		}
		aux, entry := o.ptr(f.aux), o.ptr(f.entry)
		p := &BPFProgram{
			ID: uint32(id), Type: bpfName(f.progTypes, o.uint(f.progType)), Tag: hex.EncodeToString(o.bytes(f.tag)),
			UID: NoID, Instructions: uint32(o.uint(f.progLen)), Attachments: []BPFAttachment{}, MapIDs: []uint32{}, KernelAddress: at,
		}
		if n := o.uint(f.jitLen); n != 0 {
			p.JITAddress, p.JITSize = entry, n
		}
		if err := l.g.r.check(at, aux, 8); err != nil {
			return err
		}
		return l.readAux(p, id, aux, entry)
	})
}

// readAux reads what is in p's struct bpf_prog_aux. entry is where its code
// begins.
func (l *bpfLook) readAux(p *BPFProgram, id uint64, aux, entry hypervisor.VirtAddr) error {
	f, r := l.f, &l.g.r
	o, buf, err := r.object(l.buf, aux, f.auxSpan)
	l.buf = buf
	if err != nil {
		return err
	}
	if got := o.uint(f.progID); got != id {
		return fmt.Errorf("%w: program %d stands for %d", ErrTorn, got, id)
	}
	l.progs[p.KernelAddress] = p
	p.Name = cString(o.bytes(f.name))
	if t := o.uint(f.loadTime); f.loadTime.ok && !l.boot.IsZero() && t < uint64(maxUptime) {
		p.LoadTime = l.boot.Add(time.Duration(t))
	}
	// The rest is read from elsewhere: o is gone then.
	user, maps, mapCount := o.ptr(f.user), o.ptr(f.maps), o.uint(f.mapCount)
	funcs, funcCount := o.ptr(f.funcs), o.uint(f.funcCount)
	if user != 0 && f.uid.ok {
		if err := r.check(aux, user, 8); err != nil {
			return err
		}
		uid, err := r.u32(user + hypervisor.VirtAddr(f.uid.off))
		if err != nil {
			return err
		}
		p.UID = int(uid)
	}
	if err := l.readUsedMaps(p, aux, maps, mapCount); err != nil {
		return err
	}
	if funcCount == 0 {
		return nil
	}
	// Until 5.12 a program of several functions has no length of its own.
	size, err := l.jitSize(aux, funcs, funcCount)
	if err == nil && size != 0 {
		p.JITAddress, p.JITSize = entry, size
	}
	return err
}

func (l *bpfLook) readUsedMaps(p *BPFProgram, aux, maps hypervisor.VirtAddr, count uint64) error {
	switch {
	case count == 0:
		return nil
	case count > maxBPFMaps:
		return fmt.Errorf("%w: %d maps of one program", ErrLimit, count)
	}
	if err := l.g.r.check(aux, maps, 8); err != nil {
		return err
	}
	b := make([]byte, 8*count)
	if err := l.g.r.full(b, maps); err != nil {
		return err
	}
	for _, m := range pointers(b) {
		if err := l.g.r.check(maps, m, 8); err != nil {
			return err
		}
		id, err := l.g.r.u32(m + hypervisor.VirtAddr(l.f.mapID.off))
		if err != nil {
			return err
		}
		p.MapIDs = append(p.MapIDs, id)
	}
	return nil
}

// jitSize returns the bytes of a program's functions, as the kernel counts them
// (bpf_prog_get_info_by_fd in kernel/bpf/syscall.c).
func (l *bpfLook) jitSize(aux, funcs hypervisor.VirtAddr, count uint64) (uint64, error) {
	if count > maxBPFFuncs {
		return 0, fmt.Errorf("%w: %d functions of one program", ErrLimit, count)
	}
	if err := l.g.r.check(aux, funcs, 8); err != nil {
		return 0, err
	}
	b := make([]byte, 8*count)
	if err := l.g.r.full(b, funcs); err != nil {
		return 0, err
	}
	size := uint64(0)
	for _, p := range pointers(b) {
		if err := l.g.r.check(funcs, p, 8); err != nil {
			return 0, err
		}
		n, err := l.g.r.u32(p + hypervisor.VirtAddr(l.f.jitLen.off))
		if err != nil {
			return 0, err
		}
		size += uint64(n)
	}
	return size, nil
}
