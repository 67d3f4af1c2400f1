package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux"
)

// guest is a VM that was opened, and the Linux that was found in it.
type guest struct {
	vm    hypervisor.VM
	linux *linux.Guest
}

// withGuest opens the VM that name means, finds its kernel, and lets do work
// with it.
func (a *app) withGuest(ctx context.Context, name string, do func(*guest) error) (err error) {
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
	lg, err := n.Linux(ctx, vm)
	if err != nil {
		return fmt.Errorf("look into %s: %w", name, err)
	}
	return do(&guest{vm: vm, linux: lg})
}
