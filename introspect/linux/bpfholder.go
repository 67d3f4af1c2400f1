package linux

import (
	"context"
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
)

const (
	// bpfFSMagic is BPF_FS_MAGIC (include/uapi/linux/magic.h).
	bpfFSMagic     = 0xcafe4a11
	maxSuperBlocks = 64 << 10
	maxBPFInodes   = 1 << 20
	maxAliases     = 64 // names of one inode
)

// readHolders finds the processes that hold descriptors of programs, maps and
// links, and the programs of perf events.
func (l *bpfLook) readHolders(ctx context.Context) error {
	f := l.f
	if !f.fileOp.ok || !f.filePrivate.ok || len(l.progs)+len(l.maps)+len(l.links) == 0 {
		return nil
	}
	procs, err := l.g.Processes(ctx, ProcessOptions{})
	if err != nil {
		return err
	}
	l.cov.Merge(procs.Coverage)
	// Of the files that many processes share, each is read once.
	known := map[hypervisor.VirtAddr]*[]int{}
	for i := range procs.Processes {
		p := &procs.Processes[i]
		if p.Kernel {
			continue
		}
		err := l.g.walkFDs(ctx, p.KernelAddress, func(_ int, file hypervisor.VirtAddr, _ bool) bool {
			to, ok := known[file]
			if !ok {
				var err error
				if to, err = l.held(file); err != nil {
					l.cov.Add("open file", file, err)
				}
				known[file] = to
			}
			if to != nil {
				*to = append(*to, p.PID)
			}
			return true
		})
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, profile.ErrNoType):
			return err
		case err != nil:
			l.cov.Add(fmt.Sprintf("files of pid %d", p.PID), p.KernelAddress, err)
		}
	}
	return nil
}

// held returns where the holders of what the struct file at addr is are kept;
// nil when it is nothing of eBPF.
func (l *bpfLook) held(addr hypervisor.VirtAddr) (*[]int, error) {
	f := l.f
	o, buf, err := l.g.r.object(l.buf, addr, f.fileSpan)
	l.buf = buf
	if err != nil {
		return nil, err
	}
	op, private := o.ptr(f.fileOp), o.ptr(f.filePrivate)
	switch {
	case op == 0:
	case op == f.progFops:
		if p := l.progs[private]; p != nil {
			return &p.PIDs, nil
		}
	case op == f.mapFops:
		if m := l.maps[private]; m != nil {
			return &m.PIDs, nil
		}
	case op == f.linkFops, op == f.linkPollFops:
		if k := l.links[private]; k != nil {
			return &k.PIDs, nil
		}
	case op == f.perfFops && f.places.eventProg.ok:
		return nil, l.perfProgram(private)
	}
	return nil, nil
}

// perfProgram tells where the program of the struct perf_event at event is
// attached. It has none, or a link that says the same.
func (l *bpfLook) perfProgram(event hypervisor.VirtAddr) error {
	if err := l.g.r.check(event, event, 8); err != nil {
		return err
	}
	at, err := l.g.r.ptr(event + hypervisor.VirtAddr(l.f.places.eventProg.off))
	p := l.progs[at]
	if err != nil || p == nil {
		return err
	}
	a := BPFAttachment{Type: "perf_event"}
	if err := l.perfEvent(&a, event); err != nil {
		return err
	}
	for _, b := range p.Attachments {
		if b.Function == a.Function && b.Path == a.Path {
			return nil
		}
	}
	p.Attachments = append(p.Attachments, a)
	return nil
}

// readPins finds what is pinned in bpf file systems.
func (l *bpfLook) readPins(ctx context.Context) error {
	p, r := &l.f.places, &l.g.r
	if l.f.superBlocks == 0 || !p.sbList.ok || !p.sbMagic.ok || !p.sbInodes.ok || !p.inodeList.ok || !p.inodePrivate.ok {
		return nil
	}
	_, err := r.walkList(ctx, l.f.superBlocks, forward, maxSuperBlocks, func(node, _ hypervisor.VirtAddr) (links, error) {
		sb := node - hypervisor.VirtAddr(p.sbList.off)
		magic, err := r.u64(sb + hypervisor.VirtAddr(p.sbMagic.off))
		if err != nil {
			return links{}, err
		}
		if magic == bpfFSMagic {
			if err := l.pinnedIn(ctx, sb); err != nil {
				if ctx.Err() != nil {
					return links{}, ctx.Err()
				}
				l.cov.Add("bpf file system", sb, err)
			}
		}
		return r.readLinks(node)
	})
	return err
}

// pinnedIn finds what is pinned in the file system of the struct super_block at
// sb.
func (l *bpfLook) pinnedIn(ctx context.Context, sb hypervisor.VirtAddr) error {
	p, r := &l.f.places, &l.g.r
	mnt, err := l.mountOf(sb)
	if err != nil {
		return err
	}
	sp := spanOf(p.inodeList, p.inodePrivate, p.inodeDentry)
	_, err = r.walkList(ctx, sb+hypervisor.VirtAddr(p.sbInodes.off), forward, maxBPFInodes, func(node, _ hypervisor.VirtAddr) (links, error) {
		inode := node - hypervisor.VirtAddr(p.inodeList.off)
		o, _, err := r.object(nil, inode, sp)
		if err != nil {
			return links{}, err
		}
		var to *[]string
		private := o.ptr(p.inodePrivate)
		switch {
		case private == 0:
		case l.progs[private] != nil:
			to = &l.progs[private].Pinned
		case l.maps[private] != nil:
			to = &l.maps[private].Pinned
		case l.links[private] != nil:
			to = &l.links[private].Pinned
		}
		if to == nil || !p.inodeDentry.ok || !p.dentryAlias.ok {
			return o.links(p.inodeList), nil
		}
		err = r.walkHList(ctx, inode+hypervisor.VirtAddr(p.inodeDentry.off), maxAliases, func(alias hypervisor.VirtAddr) error {
			path, err := l.paths.of(filePath{mnt: mnt, dentry: alias - hypervisor.VirtAddr(p.dentryAlias.off)})
			if err == nil {
				*to = append(*to, path)
			}
			return err
		})
		if err != nil {
			l.cov.Add("names of pinned eBPF", inode, err)
		}
		return o.links(p.inodeList), nil
	})
	return err
}

// mountOf returns the struct vfsmount of one mount of the file system at sb.
func (l *bpfLook) mountOf(sb hypervisor.VirtAddr) (hypervisor.VirtAddr, error) {
	p := &l.f.places
	first, err := l.g.r.follow(sb, field{off: p.sbMounts.off, size: 8, ok: p.sbMounts.ok})
	if err != nil || !p.mntVFS.ok {
		return 0, err
	}
	if p.sbMounts.size == 16 {
		if first == sb+hypervisor.VirtAddr(p.sbMounts.off) {
			return 0, errors.New("it is mounted nowhere")
		}
		first -= hypervisor.VirtAddr(p.mntInstance.off)
	}
	return first + hypervisor.VirtAddr(p.mntVFS.off), nil
}
