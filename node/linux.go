package node

import (
	"context"
	"errors"
	"log/slog"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux"
)

// Linux finds the Linux kernel in vm's memory. Registers are used where the
// driver has them; where it has not, RAM alone must do.
func (n *Node) Linux(ctx context.Context, vm hypervisor.VM) (*linux.Guest, error) {
	var regs []hypervisor.Registers
	if rr, err := hypervisor.As[hypervisor.RegisterReader](vm); err == nil {
		regs, err = rr.Registers(ctx)
		switch {
		case errors.Is(err, hypervisor.ErrGone), errors.Is(err, context.Canceled):
			return nil, err
		case err != nil:
			n.log.DebugContext(ctx, "no registers, using memory alone", slog.String("vm", vm.Info().URI), slog.Any("error", err))
		}
	}
	return linux.Open(ctx, vm, linux.Options{Registers: regs, CacheDir: n.cacheDir, Logger: n.log})
}
