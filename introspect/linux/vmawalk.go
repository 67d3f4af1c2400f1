package linux

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// Bounds of a process's mappings.
const (
	maxVMAs       = 1 << 20 // sysctl vm.max_map_count is 65530 unless raised
	maxMapleNodes = maxVMAs / 4
	maxAnonName   = 80 // ANON_VMA_NAME_MAX_LEN, mm/madvise.c
	maxUserAddr   = hypervisor.VirtAddr(1) << 56
)

// Bits of vm_flags (include/linux/mm.h).
const (
	vmRead     = 1 << 0
	vmWrite    = 1 << 1
	vmExec     = 1 << 2
	vmMayShare = 1 << 7
)

// vmaFields is where the facts of a vm_area_struct lie.
type vmaFields struct {
	start, end, flags, mm, pgoff, file, ops, private field
	next, prev                                       field
	anonName, anonNameText                           field
	mappingName                                      field // in vm_special_mapping
	span                                             span
}

func (v *vmaFields) facts() []fact {
	return []fact{
		{&v.start, 8, want, []string{"vm_area_struct.vm_start"}},
		{&v.end, 8, want, []string{"vm_area_struct.vm_end"}},
		{&v.flags, 8, want, []string{"vm_area_struct.vm_flags", "vm_area_struct.__vm_flags", "vm_area_struct.flags"}},
		{&v.mm, 8, want, []string{"vm_area_struct.vm_mm"}},
		{&v.pgoff, 8, want, []string{"vm_area_struct.vm_pgoff"}},
		{&v.file, 8, want, []string{"vm_area_struct.vm_file"}},
		{&v.ops, 8, may, []string{"vm_area_struct.vm_ops"}},
		{&v.private, 8, may, []string{"vm_area_struct.vm_private_data"}},
		{&v.next, 8, may, []string{"vm_area_struct.vm_next"}}, // until 6.0
		{&v.prev, 8, may, []string{"vm_area_struct.vm_prev"}},
		{&v.anonName, 8, may, []string{"vm_area_struct.anon_name"}}, // since 5.17, CONFIG_ANON_VMA_NAME
		{&v.anonNameText, 0, may, []string{"anon_vma_name.name"}},
		{&v.mappingName, 8, may, []string{"vm_special_mapping.name"}},
	}
}

func (v *vmaFields) spans() {
	v.span = spanOf(v.start, v.end, v.flags, v.mm, v.pgoff, v.file, v.ops, v.private, v.next, v.prev, v.anonName)
}

// vmaWalk walks the mappings of one mm.
type vmaWalk struct {
	g     *Guest
	mm    hypervisor.VirtAddr
	info  object // the mm_struct's mapSpan
	paths *paths
	cov   *introspect.Coverage
	buf   []byte
	out   []VMA
	// With keep, behind has what else Maps needs of each in out.
	keep   bool
	behind []mapFile
	last   mapFile // of the vm_area_struct that was read last
}

// VMAs returns the mappings of p, in ascending order of address. What of them
// could not be read is told in the coverage. It returns ErrNoMemory for a
// process without user memory, and ErrGone when p is no longer where it was
// listed.
func (g *Guest) VMAs(ctx context.Context, p Process) ([]VMA, *introspect.Coverage, error) {
	mm, err := g.mmOf(ctx, p)
	if err != nil {
		return nil, nil, err
	}
	var out []VMA
	var cov *introspect.Coverage
	for range g.rounds() {
		w := &vmaWalk{g: g, mm: mm, paths: newPaths(&g.r, &g.lay.fs), cov: &introspect.Coverage{}}
		if err := w.walk(ctx); err != nil {
			if ctx.Err() != nil {
				return w.out, w.cov, err
			}
			w.cov.Add("mappings", mm, err)
		}
		if cov == nil || w.cov.Total() < cov.Total() {
			out, cov = w.out, w.cov
		}
		if cov.Complete() {
			break
		}
	}
	return out, cov, nil
}

func (w *vmaWalk) walk(ctx context.Context) error {
	f := &w.g.lay.mm
	o, _, err := w.g.r.object(nil, w.mm, f.mapSpan)
	if err != nil {
		return err
	}
	w.info = o
	switch {
	case f.mapRoot.ok && w.g.lay.maple.usable():
		bad := func(at hypervisor.VirtAddr, err error) { w.cov.Add("maple tree of mappings", at, err) }
		return w.g.r.walkMaple(ctx, &w.g.lay.maple, o.uint(f.mapRoot), maxMapleNodes, bad, func(first, last uint64, entry hypervisor.VirtAddr) bool {
			v, _, err := w.vma(entry)
			if err == nil && (uint64(v.Start) != first || uint64(v.End)-1 != last) {
				err = fmt.Errorf("%w: mapping %#x-%#x stands at %#x-%#x", ErrTorn, uint64(v.Start), uint64(v.End), first, last+1)
			}
			w.add(entry, v, err)
			return len(w.out) < maxVMAs
		})
	case f.mapList.ok && w.g.lay.vma.next.ok:
		return w.list(ctx, o.ptr(f.mapList))
	}
	return errors.New("this kernel's type information has no list or tree of mappings")
}

// list walks the linked list of kernels until 6.0. It is sorted, so that a
// cycle shows as a mapping that does not lie behind the last one.
func (w *vmaWalk) list(ctx context.Context, at hypervisor.VirtAddr) error {
	last := hypervisor.VirtAddr(0)
	var end hypervisor.VirtAddr
	for n := 0; at != 0; n++ {
		if n%ctxEvery == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if n >= maxVMAs {
			return fmt.Errorf("mappings: %w: %d", ErrLimit, maxVMAs)
		}
		v, o, err := w.vma(at)
		if o.data == nil {
			return err
		}
		if err == nil && v.Start < end {
			return &PointerError{Where: last, Value: at, Err: ErrCycle}
		}
		if prev := o.ptr(w.g.lay.vma.prev); w.g.lay.vma.prev.ok && prev != last {
			w.cov.Add("list of mappings", at, &PointerError{Where: at, Value: prev, Err: ErrTorn})
		}
		next := o.ptr(w.g.lay.vma.next)
		w.add(at, v, err)
		if err != nil {
			return err
		}
		end, last, at = v.End, at, next
	}
	return nil
}

func (w *vmaWalk) add(at hypervisor.VirtAddr, v VMA, err error) {
	if err != nil {
		w.cov.Add("mapping", at, err)
		return
	}
	w.out = append(w.out, v)
	if w.keep {
		w.behind = append(w.behind, w.last)
	}
}

// vma reads the vm_area_struct at addr. The object is without data when it
// could not be read at all.
func (w *vmaWalk) vma(addr hypervisor.VirtAddr) (VMA, object, error) {
	f := &w.g.lay.vma
	if err := w.g.r.check(addr, addr, 8); err != nil {
		return VMA{}, object{}, err
	}
	o, buf, err := w.g.r.object(w.buf, addr, f.span)
	w.buf = buf
	if err != nil {
		return VMA{}, object{}, err
	}
	v := VMA{Start: o.ptr(f.start), End: o.ptr(f.end)}
	switch {
	case v.Start >= v.End || v.End > maxUserAddr || v.Start.Offset() != 0 || v.End.Offset() != 0:
		return v, o, fmt.Errorf("%w: from %#x to %#x", ErrTorn, uint64(v.Start), uint64(v.End))
	case o.ptr(f.mm) != w.mm:
		return v, o, fmt.Errorf("%w: it belongs to the mm at %#x", ErrTorn, o.uint(f.mm))
	}
	v.Perms = perms(o.uint(f.flags))
	file := o.ptr(f.file)
	w.last = mapFile{file: file, flags: o.uint(f.flags)}
	v.Anon = file == 0
	v.file, v.ops = file, o.ptr(f.ops)
	if file == 0 {
		v.Path = w.name(o, v)
		return v, o, nil
	}
	v.Offset = o.uint(f.pgoff) << hypervisor.PageShift
	if v.Path, err = w.paths.ofFile(file); err != nil {
		w.cov.Add("path of a mapping", addr, err)
	}
	return v, o, nil
}

func perms(flags uint64) string {
	b := []byte("---p")
	for i, bit := range [...]uint64{vmRead, vmWrite, vmExec} {
		if flags&bit != 0 {
			b[i] = "rwx"[i]
		}
	}
	if flags&vmMayShare != 0 {
		b[3] = 's'
	}
	return string(b)
}

// name names a mapping without a file as get_vma_name in fs/proc/task_mmu.c
// does.
func (w *vmaWalk) name(o object, v VMA) string {
	f, m := &w.g.lay.vma, &w.g.lay.mm
	if ops := o.ptr(f.ops); ops != 0 && ops == w.g.sym.specialMapping && f.mappingName.ok {
		if at, err := w.g.r.ptr(o.ptr(f.private) + hypervisor.VirtAddr(f.mappingName.off)); err == nil {
			if s, err := w.g.r.cstring(at, nameMax); err == nil {
				return s
			}
		}
	}
	if vdso := w.info.ptr(m.vdso); m.vdso.ok && vdso != 0 && v.Start == vdso {
		return "[vdso]"
	}
	if brk, start := w.info.ptr(m.brk), w.info.ptr(m.startBrk); m.brk.ok && v.Start < brk && v.End > start {
		return "[heap]"
	}
	if sp := w.info.ptr(m.startStack); m.startStack.ok && v.Start <= sp && v.End >= sp {
		return "[stack]"
	}
	if at := o.ptr(f.anonName); f.anonName.ok && f.anonNameText.ok && w.g.r.check(o.addr, at, 4) == nil {
		if s, err := w.g.r.cstring(at+hypervisor.VirtAddr(f.anonNameText.off), maxAnonName); err == nil && s != "" {
			var b strings.Builder
			b.WriteString("[anon:")
			b.WriteString(s)
			b.WriteByte(']')
			return b.String()
		}
	}
	return ""
}
