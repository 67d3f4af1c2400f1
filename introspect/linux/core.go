package linux

import (
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// Bounds of a core.
const (
	maxCoreSegments = 1 << 18
	maxCoreThreads  = 1 << 16
	// coreHole is the least hole in an area for which its segment is split, in
	// bytes: smaller ones are zeros in the file.
	coreHole = 1 << 20
)

// Sizes of ELF's structures (include/uapi/linux/elf.h).
const (
	elfHeaderLen  = 64
	elfProgLen    = 56
	elfSectionLen = 64
	pnXNum        = 0xffff // PN_XNUM: the count is in the first section header
)

// coreSegment is a part of an area; only the first file bytes of it are in the
// core.
type coreSegment struct {
	vma        *VMA
	start, end hypervisor.VirtAddr
	file       uint64
}

// core is a process as it is written.
type core struct {
	*areasLook
	table    *coreTable
	cpus     coreCPUs
	threads  []coreThread
	notes    []byte
	segments []coreSegment
	problems *introspect.Coverage
}

// CoreOptions say how a core is made. The zero value is ready for use.
type CoreOptions struct {
	// Registers of the vCPUs, for the threads that ran when the guest was
	// paused. They must have been read since then; leave them out for a guest
	// that runs.
	Registers []hypervisor.Registers
}

// Core returns p as an ELF core, which gdb and others open: its memory as far as
// it is in RAM, page cache included, its threads and their registers, its
// auxiliary vector and the names of its files.
//
// Registers are those with which a thread left user mode, or those of the vCPU
// that it ran on. A running thread of which neither is known has none, which the
// coverage tells.
func (g *Guest) Core(ctx context.Context, p Process, opt CoreOptions) (*Content, error) {
	c, err := g.core(ctx, p, opt)
	if err != nil {
		return nil, fmt.Errorf("core of process %d: %w", p.PID, err)
	}
	head := c.header()
	size := uint64(len(head))
	for i := range c.segments {
		size += c.segments[i].file
	}
	return &Content{Path: p.Exe, Size: size, copy: func(ctx context.Context, w *contentWriter) error {
		w.cov.Problems.Merge(c.problems)
		c.restart()
		if err := w.write(head); err != nil {
			return err
		}
		for i := range c.segments {
			s := &c.segments[i]
			filled := s.start + hypervisor.VirtAddr(s.file)
			if s.file > 0 {
				if err := c.copy(ctx, w, s.vma, s.start, filled); err != nil {
					return err
				}
			}
			if err := c.countLost(ctx, w.cov, s.vma, filled, s.end); err != nil {
				return err
			}
		}
		return nil
	}}, nil
}

// ofKernel reports whether v has pages of the kernel's own that are no part of a
// program and that the kernel too leaves out of a core: [vvar].
func (v *VMA) ofKernel() bool { return v.file == 0 && v.ops != 0 && v.Path != "[vdso]" }

// countLost counts the pages of the part lo to hi of v, which is not in the
// file, that the process would see but are not in RAM.
func (c *core) countLost(ctx context.Context, cov *ContentCoverage, v *VMA, lo, hi hypervisor.VirtAddr) error {
	if lo >= hi || v.ofKernel() {
		return nil
	}
	ignore := func(hypervisor.VirtAddr, error) {}
	return c.pieces(ctx, v, lo, hi, ignore, func(p areaPiece) error {
		if p.kind == areaLost {
			n := uint64(p.end-p.start) / hypervisor.PageSize
			cov.PagesTotal += n
			cov.PagesMissing += n
		}
		return nil
	})
}

func (g *Guest) core(ctx context.Context, p Process, opt CoreOptions) (*core, error) {
	a, err := g.newAreas(ctx, p)
	if err != nil {
		return nil, err
	}
	c := &core{areasLook: a, problems: &introspect.Coverage{}}
	c.problems.Merge(a.cov)
	if c.table, err = tableOf[coreTable](g, c.problems); err != nil {
		return nil, err
	}
	root, _ := g.ProcessSpace(p)
	if root != nil {
		c.cpus = coreCPUs{regs: opt.Registers, pgd: root.Root().CR3}
	}
	if err := c.findThreads(ctx); err != nil {
		return nil, err
	}
	if err := c.makeNotes(); err != nil {
		return nil, err
	}
	c.restart()
	return c, c.findSegments(ctx)
}

func (c *core) findThreads(ctx context.Context) error {
	g := c.g
	s := taskScan{left: maxCoreThreads}
	leader, err := s.read(&g.r, &g.lay.task, c.p.KernelAddress)
	if err != nil {
		return err
	}
	var best record
	for i := range g.rounds() {
		v := record{threads: true, tasks: []task{leader}}
		s.left = maxCoreThreads
		if err := g.threadsOf(ctx, &s, &v, leader, map[hypervisor.VirtAddr]struct{}{leader.addr: {}}); err != nil {
			return err
		}
		if i == 0 || len(v.problems) < len(best.problems) {
			best = v
		}
		if len(best.problems) == 0 {
			break
		}
	}
	for _, p := range best.problems {
		c.problems.Add(p.what, p.at, p.err)
	}
	for _, t := range best.tasks {
		if t.exitState != 0 {
			continue
		}
		th := g.coreThread(c.table, &c.cpus, t, c.p.PPID)
		if th.err != nil {
			c.problems.Add(fmt.Sprintf("registers of thread %d", t.pid), t.addr, th.err)
		}
		c.threads = append(c.threads, th)
	}
	if len(c.threads) == 0 {
		return ErrGone
	}
	return nil
}

// makeNotes makes the notes. The first thread's status comes first, the
// process's own notes behind it, as the kernel writes them.
func (c *core) makeNotes() error {
	f := &c.table.auxv
	for i := range c.threads {
		c.notes = coreNote(c.notes, ntPRStatus, corePRStatus(&c.threads[i]))
		if i > 0 {
			continue
		}
		c.notes = coreNote(c.notes, ntPRPSInfo, corePRPSInfo(&c.p, &c.threads[0].task))
		if f.ok {
			o, _, err := c.g.r.object(nil, c.mm, spanOf(*f))
			if err != nil {
				return err
			}
			c.notes = coreNote(c.notes, ntAUXV, coreAUXV(o.bytes(*f)))
		}
		if files := coreFiles(c.vmas); files != nil {
			c.notes = coreNote(c.notes, ntFile, files)
		}
	}
	return nil
}

// findSegments decides which parts of the areas are in the file.
func (c *core) findSegments(ctx context.Context) error {
	// An area may be vast, but what is in it is in RAM or in swap. A page table
	// that has one page everywhere is a lie.
	limit := 8*hypervisor.TotalSize(c.g.mem.Ranges()) + 1<<30
	total := uint64(0)
	tooMany := fmt.Errorf("core: %w", ErrLimit)
	for i := range c.vmas {
		v := &c.vmas[i]
		cur := coreSegment{vma: v, start: v.Start, end: v.Start}
		if v.ofKernel() {
			cur.end = v.End
			c.segments = append(c.segments, cur)
			continue
		}
		ignore := func(hypervisor.VirtAddr, error) {} // told when it is copied
		err := c.pieces(ctx, v, v.Start, v.End, ignore, func(p areaPiece) error {
			if p.kind == areaZero || p.kind == areaLost {
				return nil
			}
			if filled := cur.start + hypervisor.VirtAddr(cur.file); p.start-filled >= coreHole {
				c.split(&cur, p.start)
			}
			total -= cur.file
			cur.file = uint64(p.end - cur.start)
			if total += cur.file; total > limit || len(c.segments) > maxCoreSegments {
				return tooMany
			}
			return nil
		})
		if err != nil {
			return err
		}
		cur.end = v.End
		c.segments = append(c.segments, cur)
	}
	if len(c.segments) > maxCoreSegments {
		return tooMany
	}
	if len(c.segments) == 0 {
		return errors.New("it has no memory areas")
	}
	return nil
}

// split ends the segment cur and what has no data behind it where the next one
// begins.
func (c *core) split(cur *coreSegment, at hypervisor.VirtAddr) {
	cur.end = at
	c.segments = append(c.segments, *cur)
	*cur = coreSegment{vma: cur.vma, start: at, end: at}
}

// header returns all that lies in front of the segments' data.
func (c *core) header() []byte {
	le := binary.LittleEndian
	phnum := 1 + len(c.segments)
	xnum := phnum >= pnXNum
	notesAt := uint64(elfHeaderLen + phnum*elfProgLen)
	sectionAt := uint64(0)
	if xnum {
		sectionAt = notesAt
		notesAt += elfSectionLen
	}
	dataAt := (notesAt + uint64(len(c.notes)) + hypervisor.PageSize - 1) &^ (hypervisor.PageSize - 1)
	b := make([]byte, dataAt)
	copy(b, elf.ELFMAG)
	b[elf.EI_CLASS], b[elf.EI_DATA], b[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	le.PutUint16(b[16:], uint16(elf.ET_CORE))
	le.PutUint16(b[18:], uint16(elf.EM_X86_64))
	le.PutUint32(b[20:], uint32(elf.EV_CURRENT))
	le.PutUint64(b[32:], elfHeaderLen) // e_phoff
	le.PutUint64(b[40:], sectionAt)
	le.PutUint16(b[52:], elfHeaderLen)
	le.PutUint16(b[54:], elfProgLen)
	le.PutUint16(b[56:], uint16(min(phnum, pnXNum)))
	if xnum {
		le.PutUint16(b[58:], elfSectionLen)
		le.PutUint16(b[60:], 1)
		le.PutUint64(b[sectionAt+32:], 1)             // sh_size: count of sections
		le.PutUint32(b[sectionAt+44:], uint32(phnum)) // sh_info
	}
	prog := func(i int, kind elf.ProgType, flags elf.ProgFlag, off, vaddr, fileSize, memSize, align uint64) {
		p := b[elfHeaderLen+i*elfProgLen:]
		le.PutUint32(p, uint32(kind))
		le.PutUint32(p[4:], uint32(flags))
		for j, x := range []uint64{off, vaddr, 0, fileSize, memSize, align} {
			le.PutUint64(p[8+8*j:], x)
		}
	}
	prog(0, elf.PT_NOTE, 0, notesAt, 0, uint64(len(c.notes)), 0, 4)
	copy(b[notesAt:], c.notes)
	at := dataAt
	for i := range c.segments {
		s := &c.segments[i]
		prog(1+i, elf.PT_LOAD, coreFlags(s.vma.Perms), at, uint64(s.start), s.file, uint64(s.end-s.start), hypervisor.PageSize)
		at += s.file
	}
	return b
}

func coreFlags(perms string) (f elf.ProgFlag) {
	for i, bit := range []elf.ProgFlag{elf.PF_R, elf.PF_W, elf.PF_X} {
		if i < len(perms) && perms[i] != '-' {
			f |= bit
		}
	}
	return f
}
