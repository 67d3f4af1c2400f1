package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux"
	"github.com/vantage-vmi/vantage/node"
)

// lookMemory is how much memory a look takes before any of it is collected: far
// more than a listing needs, so that none is paid for in a run of some
// milliseconds.
const lookMemory = 256 << 20

// withVM opens the VM that name means and lets do work with it.
func (a *app) withVM(ctx context.Context, name string, do func(*node.Node, hypervisor.VM) error) (err error) {
	if os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == "" {
		percent, limit := debug.SetGCPercent(-1), debug.SetMemoryLimit(lookMemory)
		defer func() { debug.SetGCPercent(percent); debug.SetMemoryLimit(limit) }()
	}
	n, err := a.node()
	if err != nil {
		return err
	}
	vm, err := n.Open(ctx, name)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := vm.Close(); cerr != nil {
			err = errors.Join(err, fmt.Errorf("close %s: %w", name, cerr))
		}
	}()
	return do(n, vm)
}

// withGuest opens the VM that name means, finds its kernel and, while the VM
// stands still if it is to, lets do look at it.
func (a *app) withGuest(ctx context.Context, name string, do func(*linux.Guest) error) (err error) {
	out := a.stdout
	lines := bufio.NewWriterSize(out, 64<<10) // a listing is thousands of short ones
	a.stdout = lines
	defer func() {
		a.stdout = out
		if ferr := lines.Flush(); err == nil {
			err = ferr // one that is lost next to err is told by run
		}
	}()
	return a.withVM(ctx, name, func(n *node.Node, vm hypervisor.VM) error {
		g, err := n.Linux(ctx, vm)
		if err != nil {
			return fmt.Errorf("look into %s: %w", name, err)
		}
		return a.still(ctx, name, vm, func() error {
			g.Flush() // what was translated before the pause
			return do(g)
		})
	})
}
