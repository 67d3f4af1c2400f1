package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux"
	"github.com/vantage-vmi/vantage/node"
)

// withVM opens the VM that name means and lets do work with it.
func (a *app) withVM(ctx context.Context, name string, do func(*node.Node, hypervisor.VM) error) (err error) {
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
func (a *app) withGuest(ctx context.Context, name string, do func(*linux.Guest) error) error {
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
