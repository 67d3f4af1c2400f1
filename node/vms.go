package node

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// OpenVMs lets responses reach VMs by URI. VMs that are open already are used as
// they are: a QMP socket serves one client only, and that is ours then. It
// implements policy.VMs, and is safe for concurrent use.
type OpenVMs struct {
	node *Node
	mu   sync.Mutex
	vms  map[string]hypervisor.VM
}

// NewOpenVMs returns an empty set of n's VMs.
func (n *Node) NewOpenVMs() *OpenVMs {
	return &OpenVMs{node: n, vms: map[string]hypervisor.VM{}}
}

// Add makes vm, which the caller closes, reachable until remove is called.
func (o *OpenVMs) Add(vm hypervisor.VM) (remove func()) {
	uri := vm.Info().URI
	o.mu.Lock()
	defer o.mu.Unlock()
	o.vms[uri] = vm
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.vms, uri)
	}
}

// Pause pauses the VM with this URI.
func (o *OpenVMs) Pause(ctx context.Context, uri string) error {
	return o.do(ctx, uri, func(p hypervisor.Pauser) error { return p.Pause(ctx) })
}

// Resume lets the VM with this URI run.
func (o *OpenVMs) Resume(ctx context.Context, uri string) error {
	return o.do(ctx, uri, func(p hypervisor.Pauser) error { return p.Resume(ctx) })
}

// Paused reports whether the VM with this URI is paused.
func (o *OpenVMs) Paused(ctx context.Context, uri string) (paused bool, err error) {
	err = o.do(ctx, uri, func(p hypervisor.Pauser) error {
		s, err := p.State(ctx)
		paused = s == hypervisor.StatePaused
		return err
	})
	return paused, err
}

func (o *OpenVMs) do(ctx context.Context, uri string, act func(hypervisor.Pauser) error) (err error) {
	o.mu.Lock()
	vm, ok := o.vms[uri]
	o.mu.Unlock()
	if !ok {
		vm, err = o.node.Open(ctx, uri)
		if err != nil {
			return err
		}
		defer func() {
			if cerr := vm.Close(); cerr != nil {
				err = errors.Join(err, fmt.Errorf("close %s: %w", uri, cerr))
			}
		}()
	}
	p, err := hypervisor.As[hypervisor.Pauser](vm)
	if err != nil {
		return err
	}
	return act(p)
}
