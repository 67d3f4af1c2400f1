package profile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/paging"
)

// maxImages bounds how many images are looked into before Find gives up.
const maxImages = 8

// userTableBit is the bit of CR3 that tells a process's user page table from
// its kernel one under page table isolation (PTI_USER_PGTABLE_BIT, asm/pgtable.h).
const userTableBit = 1 << hypervisor.PageShift

// Find finds the running Linux kernel in mem. With regs (of any vCPU) it is
// found from the page table that the vCPU uses; with none from RAM alone,
// which reads all of it once.
//
// It returns ErrNoKernel when there is none, ErrNoKallsyms when there is one
// without symbols, and an error that wraps ErrImplausible when what was found
// contradicts memory. When only the kernel's BTF is missing or damaged it
// returns the Kernel without Types and the error (ErrNoBTF, or one that wraps
// ErrDamaged).
//
// From RAM alone a guest's root can pass off a kernel that he made up as the
// running one; with registers the CPU's own page table decides.
func Find(ctx context.Context, mem hypervisor.Memory, regs []hypervisor.Registers, opt Options) (*Kernel, error) {
	f := &finder{mem: mem, log: opt.Logger}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if opt.CacheDir != "" {
		var err error
		if f.cache, err = openCache(opt.CacheDir, f.log); err != nil {
			f.log.Warn("no profile cache", "error", err)
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	k, err := f.try(ctx, f.imagesFromRegisters(regs))
	if k != nil || stops(ctx, err) {
		return k, err
	}
	if im := f.remembered(); im != nil {
		if k, err := f.try(ctx, []*image{im}); err == nil && k != nil || stops(ctx, err) {
			return k, err
		}
	}
	images, scanErr := f.imagesFromRAM(ctx)
	if scanErr != nil {
		return nil, fmt.Errorf("scan memory for a kernel: %w", scanErr)
	}
	k, ramErr := f.try(ctx, images)
	if k != nil && ramErr == nil {
		f.remember()
	}
	if k != nil || stops(ctx, ramErr) {
		return k, ramErr
	}
	if err == nil {
		err = ramErr
	}
	if err != nil {
		return nil, err
	}
	if n := f.stats.unreadable.Load(); n > 0 {
		return nil, fmt.Errorf("%w (%d bytes of it could not be read)", ErrNoKernel, n)
	}
	return nil, ErrNoKernel
}

// stops reports whether err leaves nothing else to try.
func stops(ctx context.Context, err error) bool {
	return err != nil && (ctx.Err() != nil || isGone(err))
}

type finder struct {
	mem   hypervisor.Memory
	log   *slog.Logger
	stats scanStats
	cache *cache   // nil: none
	items []cached // of the image that is being opened
	image *image   // that try returned the kernel of
}

// try returns the first of images that is a kernel, or why the most promising
// one was refused; nil and nil when there are none.
func (f *finder) try(ctx context.Context, images []*image) (*Kernel, error) {
	var first error
	for i, im := range images {
		if i == maxImages {
			f.log.Warn("too many kernel images in memory", "looked_at", i, "found", len(images))
			break
		}
		k, err := f.open(ctx, im)
		if k != nil {
			f.image = im
			return k, err
		}
		if stops(ctx, err) {
			return nil, err
		}
		f.log.Debug("not the running kernel", "virt", im.virt, "phys", im.phys, "error", err)
		if first == nil && !errors.Is(err, ErrNoKernel) {
			first = err
		}
	}
	return nil, first
}

// imagesFromRegisters returns the images that vCPUs' page tables map.
func (f *finder) imagesFromRegisters(regs []hypervisor.Registers) []*image {
	var images []*image
	seen := map[hypervisor.PhysAddr]bool{}
	for _, r := range regs {
		root, err := paging.RootFromRegisters(r)
		if err != nil || root.Mode != paging.Mode4Level && root.Mode != paging.Mode5Level {
			f.log.Debug("no long-mode page table in registers", "vcpu", r.VCPU, "error", err)
			continue
		}
		// With page table isolation a vCPU in user mode uses a table that
		// maps next to nothing of the kernel; the whole one lies before it.
		tops := []hypervisor.PhysAddr{root.CR3}
		if root.CR3&userTableBit != 0 {
			tops = []hypervisor.PhysAddr{root.CR3 &^ userTableBit, root.CR3}
		}
		for _, top := range tops {
			table, err := level3Of(f.mem, top, root.Mode)
			if err != nil || seen[table] {
				continue
			}
			seen[table] = true
			if im, err := readImage(f.mem, table); err == nil {
				images = append(images, im)
			}
		}
	}
	return images
}

// level3Of returns the table that covers the last 512 GiB under top.
func level3Of(mem hypervisor.Memory, top hypervisor.PhysAddr, mode paging.Mode) (hypervisor.PhysAddr, error) {
	levels := 1
	if mode == paging.Mode5Level {
		levels = 2
	}
	for range levels {
		var b [8]byte
		if err := hypervisor.ReadFull(mem, b[:], top+(tableEntries-1)*8); err != nil {
			return 0, err
		}
		e := leUint64(b[:])
		if !pointsToTable(e) {
			return 0, errNotAnImage
		}
		top = hypervisor.PhysAddr(e & entryAddr)
	}
	return top, nil
}

// imagesFromRAM returns the images that any kernel page table in RAM maps, the
// one that most address spaces share first.
func (f *finder) imagesFromRAM(ctx context.Context) ([]*image, error) {
	tables, err := findKernelTables(ctx, f.mem, &f.stats)
	if err != nil {
		return nil, err
	}
	var images []*image
	for _, t := range tables {
		if im, err := readImage(f.mem, t); err == nil && im.holdsItsTable() {
			images = append(images, im)
		}
	}
	if len(images) < 2 {
		return images, nil
	}
	f.log.Warn("several kernel images in memory", "found", len(images))
	tables = tables[:0]
	for _, im := range images {
		tables = append(tables, im.table)
	}
	counts, err := countReferences(ctx, f.mem, tables)
	if err != nil {
		return nil, err
	}
	order := make([]int, len(images))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(counts[b], counts[a]) })
	sorted := make([]*image, len(images))
	for i, j := range order {
		sorted[i] = images[j]
	}
	return sorted, nil
}

// open makes a Kernel of im, or returns why im is none.
func (f *finder) open(ctx context.Context, im *image) (*Kernel, error) {
	syms, err := findSymbols(ctx, im)
	if err != nil {
		if stops(ctx, err) {
			return nil, err
		}
		if _, bannerErr := searchBanner(im); bannerErr != nil {
			return nil, fmt.Errorf("%w: neither symbols nor a banner in the image", ErrNoKernel)
		}
		return nil, err
	}
	f.items = nil
	f.openSymbols(syms)
	k := &Kernel{VirtBase: im.virt, PhysBase: im.phys, Symbols: syms}
	if k.Root, err = findRoot(im, syms); err != nil {
		return nil, err
	}
	k.Space = paging.New(f.mem, k.Root)
	k.readBanner(im)
	blob, btfErr := findBTF(im, syms)
	if stops(ctx, btfErr) {
		return nil, btfErr
	}
	if blob != nil {
		k.Types, btfErr = f.openTypes(blob)
	}
	if k.BuildID = readBuildID(im, syms); k.BuildID == "" {
		k.BuildID = contentID(k.Banner, syms, blob)
	}
	k.findBases(ctx)
	if err := k.check(f.log); err != nil {
		return nil, err
	}
	if f.cache != nil {
		k.FromCache = !slices.ContainsFunc(f.items, func(c cached) bool { return c.content != nil })
		f.cache.storeAll(ctx, f.items)
	}
	return k, btfErr
}

// openSymbols gives syms an index from the cache, if it is there.
func (f *finder) openSymbols(syms *Symbols) {
	if f.cache == nil {
		return
	}
	d := f.cache.digest("symbols", syms.names, syms.tokenTable, []byte{boolByte(syms.plain)})
	item := cached{kind: "symbols", digest: d}
	if b := f.cache.load(item.kind, d); b != nil {
		x := &nameIndex{words(b)}
		syms.index = func() *nameIndex { return x }
	} else {
		item.content = func() []byte { return appendWords(nil, syms.index().entries) }
	}
	f.items = append(f.items, item)
}

// openTypes decodes blob, with the help of the cache.
func (f *finder) openTypes(blob []byte) (*Types, error) {
	if f.cache == nil {
		return newTypes(blob, nil)
	}
	d := f.cache.digest("types", blob)
	item := cached{kind: "types", digest: d}
	if b := f.cache.load(item.kind, d); b != nil {
		if t, err := newTypes(blob, b); err == nil {
			f.items = append(f.items, item)
			return t, nil
		}
	}
	t, err := newTypes(blob, nil)
	if err == nil {
		item.content = t.appendIndex
		f.items = append(f.items, item)
	}
	return t, err
}

func boolByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}
