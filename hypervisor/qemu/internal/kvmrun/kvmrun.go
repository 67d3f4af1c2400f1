package kvmrun

import (
	"context"
	"errors"
	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/proc"
)

// ErrNoKVM is returned when the process runs no vCPU under KVM.
var ErrNoKVM = errors.New("not under KVM")

func Registers(ctx context.Context, p *proc.Process) ([]hypervisor.Registers, error) {
	return nil, ErrNoKVM
}
