package qemu

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/monitor"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/qmp"
)

// monitorView is what QEMU itself says of the VM's memory.
type monitorView struct {
	regions    []monitor.Region
	backends   map[string]uint64 // memory backends: size in bytes by id
	baseMemory uint64            // main memory, bytes
	dimms      []dimm
	vcpus      int
	state      hypervisor.State
	hostAddr   func(gpa hypervisor.PhysAddr) (hva uint64, name string, err error)
}

// dimm is a plugged memory module.
type dimm struct {
	backend string
	addr    hypervisor.PhysAddr
	size    uint64
}

// inspect asks a monitor for all that opening a VM takes. The view's hostAddr
// works until the client is closed.
func inspect(ctx context.Context, c *qmp.Client) (*monitorView, error) {
	v := &monitorView{backends: map[string]uint64{}}
	text, err := c.HMP(ctx, "info mtree -f")
	if err != nil {
		return nil, err
	}
	if v.regions, err = monitor.FlatView(text); err != nil {
		return nil, err
	}
	var backends []struct {
		ID   string
		Size uint64
	}
	if err := c.Execute(ctx, "query-memdev", nil, &backends); err != nil {
		return nil, err
	}
	for _, b := range backends {
		if b.ID != "" {
			v.backends[b.ID] = b.Size
		}
	}
	var sum struct {
		Base uint64 `json:"base-memory"`
	}
	if err := c.Execute(ctx, "query-memory-size-summary", nil, &sum); err != nil {
		return nil, err
	}
	v.baseMemory = sum.Base
	if v.dimms, err = queryDIMMs(ctx, c); err != nil {
		return nil, err
	}
	var cpus []struct{}
	if err := c.Execute(ctx, "query-cpus-fast", nil, &cpus); err == nil {
		v.vcpus = len(cpus)
	}
	if v.state, err = queryState(ctx, c); err != nil {
		return nil, err
	}
	v.hostAddr = func(gpa hypervisor.PhysAddr) (uint64, string, error) {
		text, err := c.HMP(ctx, fmt.Sprintf("gpa2hva %#x", uint64(gpa)))
		if err != nil {
			return 0, "", err
		}
		return monitor.HostAddress(text)
	}
	return v, nil
}

// queryDIMMs returns the plugged DIMMs. NVDIMMs are storage to the guest, and
// of a virtio-mem device only parts are RAM: neither is returned.
func queryDIMMs(ctx context.Context, c *qmp.Client) ([]dimm, error) {
	var devs []struct {
		Type string
		Data struct {
			Memdev string
			Addr   uint64
			Size   uint64
		}
	}
	err := c.Execute(ctx, "query-memory-devices", nil, &devs)
	var refused *qmp.CommandError
	if errors.As(err, &refused) {
		return nil, nil // a board without hotplug
	}
	if err != nil {
		return nil, err
	}
	var out []dimm
	for _, d := range devs {
		if d.Type == "dimm" {
			out = append(out, dimm{
				backend: strings.TrimPrefix(d.Data.Memdev, "/objects/"),
				addr:    hypervisor.PhysAddr(d.Data.Addr),
				size:    d.Data.Size,
			})
		}
	}
	return out, nil
}

// queryState asks whether the vCPUs run.
func queryState(ctx context.Context, c *qmp.Client) (hypervisor.State, error) {
	var st struct{ Running bool }
	if err := c.Execute(ctx, "query-status", nil, &st); err != nil {
		return hypervisor.StateUnknown, err
	}
	if st.Running {
		return hypervisor.StateRunning, nil
	}
	return hypervisor.StatePaused, nil
}
