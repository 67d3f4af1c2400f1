package linux

import (
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Bounds of the kernel's records of its own virtual memory.
const (
	viewAreaDepth = 128 // of a tree of areas: twice the logarithm of their number
	viewAreaNodes = 1024
)

// viewArea is one allocation of the kernel's virtual memory (struct vmap_area).
type viewArea struct {
	start, end hypervisor.VirtAddr
	caller     hypervisor.VirtAddr // who asked for it, 0: not known
}

// viewAreaRoots returns the roots of the trees of areas.
func (g *Guest) viewAreaRoots(f *viewCodeFacts) ([]hypervisor.VirtAddr, error) {
	if !f.areaStart.ok || !f.areaEnd.ok || !f.areaNode.ok || !f.rbLeft.ok || !f.rbRight.ok {
		return nil, nil
	}
	if f.areaRoot != 0 {
		root, err := g.r.ptr(f.areaRoot + hypervisor.VirtAddr(f.rbRoot.off))
		return []hypervisor.VirtAddr{root}, err
	}
	if f.areaNodes == 0 || f.areaNodeCount == 0 || !f.busyRoot.ok || f.nodeSize == 0 {
		return nil, nil
	}
	n, err := g.r.u32(f.areaNodeCount)
	if err != nil {
		return nil, err
	}
	if n > viewAreaNodes {
		return nil, fmt.Errorf("vmap_nodes: %w: %d", ErrTorn, n)
	}
	at, err := g.r.ptr(f.areaNodes)
	if err == nil {
		err = g.r.check(f.areaNodes, at, 8)
	}
	if err != nil {
		return nil, err
	}
	roots := make([]hypervisor.VirtAddr, 0, n)
	for i := range uint64(n) {
		root, err := g.r.ptr(at + hypervisor.VirtAddr(i*f.nodeSize+f.busyRoot.off))
		if err != nil {
			return roots, err
		}
		roots = append(roots, root)
	}
	return roots, nil
}

// viewAreaOf returns the area that va lies in.
func (g *Guest) viewAreaOf(f *viewCodeFacts, roots []hypervisor.VirtAddr, va hypervisor.VirtAddr) (viewArea, bool) {
	var buf []byte
	for _, node := range roots {
		for range viewAreaDepth {
			if node == 0 || g.r.check(node, node, 8) != nil {
				break
			}
			o, b, err := g.r.object(buf, node-hypervisor.VirtAddr(f.areaNode.off), f.areaSpan)
			buf = b
			if err != nil {
				break
			}
			a := viewArea{start: o.ptr(f.areaStart), end: o.ptr(f.areaEnd)}
			next := f.rbRight
			switch {
			case va < a.start:
				next = f.rbLeft
			case va < a.end:
				if vm := o.ptr(f.areaVM); f.vmCaller.ok && g.r.check(node, vm, 8) == nil {
					a.caller, _ = g.r.ptr(vm + hypervisor.VirtAddr(f.vmCaller.off))
				}
				return a, true
			}
			node = o.ptr(field{off: f.areaNode.off + next.off, size: 8, ok: true})
		}
	}
	return viewArea{}, false
}
