package linux

import (
	"context"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Bounds of control groups.
const (
	maxCgroupDepth = 512 // of directories; the kernel's own default is no limit
	maxHierarchies = 64  // CGROUP_SUBSYS_COUNT and named ones
	// maxCgroupSteps bounds the directories met in one look at the guest.
	maxCgroupSteps = 1 << 20
)

// cgroupFields is where the facts of control groups lie.
type cgroupFields struct {
	dflCgrp, cgrpLinks field // in struct css_set
	cssSpan            span
	linkCgrp, linkNode field // in struct cgrp_cset_link
	linkSpan           span
	kn, root           field // in struct cgroup
	cgrpSpan           span
	rootName           field // in struct cgroup_root
	parent, name       field // in struct kernfs_node
	nodeSpan           span
}

func (c *cgroupFields) facts() []fact {
	return []fact{
		{&c.dflCgrp, 8, may, []string{"css_set.dfl_cgrp"}},
		{&c.cgrpLinks, 16, may, []string{"css_set.cgrp_links"}},
		{&c.linkCgrp, 8, may, []string{"cgrp_cset_link.cgrp"}},
		{&c.linkNode, 16, may, []string{"cgrp_cset_link.cgrp_link"}},
		{&c.kn, 8, may, []string{"cgroup.kn"}},
		{&c.root, 8, may, []string{"cgroup.root"}},
		{&c.rootName, 64, may, []string{"cgroup_root.name"}},
		{&c.parent, 8, may, []string{"kernfs_node.__parent", "kernfs_node.parent"}}, // renamed in 6.15
		{&c.name, 8, may, []string{"kernfs_node.name"}},
	}
}

func (c *cgroupFields) spans() {
	c.cssSpan = spanOf(c.dflCgrp, c.cgrpLinks)
	c.linkSpan = spanOf(c.linkCgrp, c.linkNode)
	c.cgrpSpan = spanOf(c.kn, c.root)
	c.nodeSpan = spanOf(c.parent, c.name)
}

// cgroups names the control groups of tasks. It is for one look at the guest
// and one goroutine.
type cgroups struct {
	r     *reader
	f     *cgroupFields
	left  int                                  // directories that may still be met
	known map[hypervisor.VirtAddr]cgroupResult // by css_set
}

type cgroupResult struct {
	path      string
	container Container
	err       error
}

func newCgroups(r *reader, f *cgroupFields) *cgroups {
	return &cgroups{r: r, f: f, left: maxCgroupSteps, known: map[hypervisor.VirtAddr]cgroupResult{}}
}

// of returns the path of the css_set at addr, and the container that it names.
func (c *cgroups) of(ctx context.Context, addr hypervisor.VirtAddr) cgroupResult {
	if addr == 0 || !c.f.dflCgrp.ok || !c.f.kn.ok || !c.f.parent.ok || !c.f.name.ok {
		return cgroupResult{} // a kernel without control groups
	}
	if res, ok := c.known[addr]; ok {
		return res
	}
	path, err := c.path(ctx, addr)
	res := cgroupResult{path: path, container: ContainerOf(path), err: err}
	c.known[addr] = res
	return res
}

// path returns the path in the unified hierarchy; where that is the root, the
// path in the hierarchy named "systemd", else in the first in which it is not.
func (c *cgroups) path(ctx context.Context, css hypervisor.VirtAddr) (string, error) {
	if err := c.r.check(css, css, 8); err != nil {
		return "", fmt.Errorf("css_set: %w", err)
	}
	o, _, err := c.r.object(nil, css, c.f.cssSpan)
	if err != nil {
		return "", fmt.Errorf("css_set: %w", err)
	}
	path, err := c.cgroupPath(o.ptr(c.f.dflCgrp))
	if err != nil || path != "/" || !c.f.cgrpLinks.ok || !c.f.linkNode.ok || !c.f.linkCgrp.ok {
		return path, err
	}
	best := path
	var named bool
	_, err = c.r.walkList(ctx, o.at(c.f.cgrpLinks), forward, maxHierarchies, func(node, _ hypervisor.VirtAddr) (links, error) {
		l, _, err := c.r.object(nil, node-hypervisor.VirtAddr(c.f.linkNode.off), c.f.linkSpan)
		if err != nil {
			return links{}, err
		}
		cgrp := l.ptr(c.f.linkCgrp)
		p, err := c.cgroupPath(cgrp)
		if err != nil {
			return links{}, err
		}
		if p != "/" && !named {
			if named = c.hierarchy(cgrp) == "systemd"; named || best == "/" {
				best = p
			}
		}
		return l.links(c.f.linkNode), nil
	})
	return best, err
}

// hierarchy returns the name of cgrp's hierarchy; empty when it has none.
func (c *cgroups) hierarchy(cgrp hypervisor.VirtAddr) string {
	if !c.f.root.ok || !c.f.rootName.ok {
		return ""
	}
	root, err := c.r.ptr(cgrp + hypervisor.VirtAddr(c.f.root.off))
	if err != nil || c.r.check(cgrp, root, 8) != nil {
		return ""
	}
	var name [64]byte
	if c.r.full(name[:], root+hypervisor.VirtAddr(c.f.rootName.off)) != nil {
		return ""
	}
	return cString(name[:])
}

// cgroupPath returns the path of the struct cgroup at addr in its hierarchy.
func (c *cgroups) cgroupPath(addr hypervisor.VirtAddr) (string, error) {
	if err := c.r.check(addr, addr, 8); err != nil {
		return "", fmt.Errorf("cgroup: %w", err)
	}
	kn, err := c.r.ptr(addr + hypervisor.VirtAddr(c.f.kn.off))
	if err != nil {
		return "", fmt.Errorf("cgroup: %w", err)
	}
	var parts []string
	size := 0
	var buf []byte
	for range maxCgroupDepth {
		if c.left--; c.left < 0 {
			return "", fmt.Errorf("cgroup paths: %w: %d directories", ErrLimit, maxCgroupSteps)
		}
		if err := c.r.check(addr, kn, 8); err != nil {
			return "", fmt.Errorf("kernfs_node: %w", err)
		}
		var o object
		if o, buf, err = c.r.object(buf, kn, c.f.nodeSpan); err != nil {
			return "", fmt.Errorf("kernfs_node: %w", err)
		}
		parent := o.ptr(c.f.parent)
		if parent == 0 {
			return join(parts, size), nil // the root, whose name is empty
		}
		name, err := c.r.cstring(o.ptr(c.f.name), nameMax+1)
		if err != nil {
			return "", fmt.Errorf("kernfs_node name: %w", err)
		}
		parts = append(parts, name)
		if size += len(name) + 1; size > maxPathBytes {
			return "", fmt.Errorf("cgroup path: %w: %d bytes", ErrLimit, maxPathBytes)
		}
		kn = parent
	}
	return "", fmt.Errorf("cgroup path: %w: %d levels", ErrLimit, maxCgroupDepth)
}
