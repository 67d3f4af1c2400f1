// Package node is one host's engine: it wires the drivers, introspection, the
// scanner and policy, and is what the command line and services stand on.
//
// It sees every package below it and holds none of their logic. Nothing but
// cmd and what serves a node to others may import it.
package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Driver is one way to reach VMs.
type Driver = hypervisor.Driver

// Options sets up a Node.
type Options struct {
	Drivers  []Driver
	CacheDir string       // where kernel profiles are kept; empty: nowhere
	Logger   *slog.Logger // nil: nothing is logged
}

// Node is one host's engine. It is safe for concurrent use.
type Node struct {
	drivers  []Driver
	cacheDir string
	log      *slog.Logger
}

// New returns a node. It opens nothing yet.
func New(o Options) *Node {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Node{drivers: o.Drivers, cacheDir: o.CacheDir, log: o.Logger}
}

// List returns the VMs that all drivers see, sorted by driver, name and PID.
// The error tells what could not be looked at, next to what could.
func (n *Node) List(ctx context.Context) ([]hypervisor.Info, error) {
	var all []hypervisor.Info
	var errs []error
	for _, d := range n.drivers {
		vms, err := d.List(ctx)
		all = append(all, vms...)
		if err != nil {
			errs = append(errs, fmt.Errorf("list VMs of driver %s: %w", d.Name(), err))
		}
	}
	slices.SortFunc(all, func(a, b hypervisor.Info) int {
		return cmp.Or(cmp.Compare(a.Driver, b.Driver), cmp.Compare(a.Name, b.Name), cmp.Compare(a.PID, b.PID))
	})
	return all, errors.Join(errs...)
}

// AmbiguousError is returned when several VMs have the name that was asked for.
type AmbiguousError struct {
	Name string
	URIs []string
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("several VMs are named %q: name one by URI: %s", e.Name, strings.Join(e.URIs, ", "))
}

// Open opens the VM that name means: a URI (qemu:PID, image:/path), a path to
// an existing file, or a name that List shows.
func (n *Node) Open(ctx context.Context, name string) (hypervisor.VM, error) {
	d, target, err := n.resolve(ctx, name)
	if err != nil {
		return nil, err
	}
	vm, err := d.Open(ctx, target)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return vm, nil
}

func (n *Node) resolve(ctx context.Context, name string) (Driver, string, error) {
	if name == "" {
		return nil, "", fmt.Errorf("no VM named: 'vantage vms' lists them")
	}
	if scheme, target, ok := strings.Cut(name, ":"); ok {
		if d := n.driver(scheme); d != nil {
			return d, target, nil
		}
	}
	if st, err := os.Stat(name); err == nil {
		if st.IsDir() {
			return nil, "", fmt.Errorf("%s: is a folder, want a memory file", name)
		}
		scheme := "image"
		if st.Mode()&os.ModeSocket != 0 {
			scheme = "qemu"
		}
		if d := n.driver(scheme); d != nil {
			abs, err := filepath.Abs(name)
			return d, abs, err
		}
	}
	vms, listErr := n.List(ctx)
	var found []hypervisor.Info
	for _, v := range vms {
		if v.Name == name || v.URI == name {
			found = append(found, v)
		}
	}
	switch len(found) {
	case 1:
		d := n.driver(found[0].Driver)
		_, target, _ := strings.Cut(found[0].URI, ":")
		return d, target, nil
	case 0:
		if strings.ContainsRune(name, os.PathSeparator) {
			return nil, "", fmt.Errorf("%s: %w", name, os.ErrNotExist)
		}
		err := fmt.Errorf("%q: %w: 'vantage vms' lists the VMs of this host", name, hypervisor.ErrNotFound)
		return nil, "", errors.Join(err, listErr)
	}
	e := &AmbiguousError{Name: name}
	for _, v := range found {
		e.URIs = append(e.URIs, v.URI)
	}
	return nil, "", e
}

func (n *Node) driver(name string) Driver {
	for _, d := range n.drivers {
		if d.Name() == name {
			return d
		}
	}
	return nil
}
