package vmm

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/acpi"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/boot"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/bus"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/cpuid"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/device"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/disk"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/layout"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/pci"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/balloon"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/block"
	vconsole "github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/console"
	vnet "github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/net"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/rng"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/vsock"
)

// devices are the ones that the machine itself speaks to.
type devices struct {
	serial  *device.Serial
	console *consoleOut // nil: no one reads it
	power   *device.Power
	pci     *pci.Host
	virtio  []*virtio.Device
	balloon *balloon.Device  // nil: none
	hvc     *vconsole.Device // nil: none
	disks   []disk.Disk
}

// setCPUID tells the vCPUs what they are.
func (m *Machine) setCPUID() error {
	supported, err := m.sys.SupportedCPUID()
	if err != nil {
		return err
	}
	deadline := m.sys.Check(kvmapi.CapTSCDeadline) > 0
	for i, v := range m.vm.VCPUs() {
		if err := v.KVM().SetCPUID2(cpuid.For(supported, deadline, i, m.cfg.CPUs)); err != nil {
			return fmt.Errorf("vCPU %d: %w", i, err)
		}
	}
	return nil
}

// addDevices makes the devices and puts them on the buses.
func (m *Machine) addDevices() error {
	var low, high uint64
	for _, r := range m.mem.Ranges() {
		if r.Start == 0 {
			low = r.Size
		} else {
			high = r.Size
		}
	}
	out := m.consoleWriter()
	m.devices.serial = device.NewSerial(m.vm.Line(layout.IRQCOM1), out)
	m.devices.power = device.NewPower(m.vm.Line(layout.IRQSCI), func() { m.stopFor(endPowerOff, EventPowerOff) })
	rtc := device.NewRTC(low, high)
	reset := func() { m.stopFor(doReset, EventReset) }
	for _, d := range []struct {
		base, size uint64
		h          bus.Handler
	}{
		{layout.PortCOM1, 8, m.devices.serial},
		{layout.PortPMEvents, 12, m.devices.power},
		{layout.PortRTC, 2, rtc},
		{layout.PortKeyboard, 5, device.NewKeyboard(reset)},
		{layout.PortPVPanic, 1, device.NewPanic(m.panicked)},
	} {
		if err := m.ports.Add(d.base, d.size, d.h); err != nil {
			return err
		}
	}
	m.parts = append(m.parts, part{name: "serial", saved: m.devices.serial}, part{name: "power", saved: m.devices.power}, part{name: "rtc", saved: rtc})
	host, err := pci.NewHost(pci.Config{
		Ports: &m.ports, MMIO: &m.mmio, MSI: m.vm, Line: m.vm.Line, ResetPort: device.NewResetPort(reset), Logger: m.log,
	})
	if err != nil {
		return err
	}
	m.devices.pci = host
	m.parts = append(m.parts, part{name: "pci", saved: host})
	return errors.Join(m.addDisks(), m.addNets(), m.addOthers())
}

// addVirtio puts a device into the next slot: the order is part of what a saved
// machine stands on.
func (m *Machine) addVirtio(name string, kind virtio.Kind) error {
	d, err := virtio.New(m.devices.pci, virtio.Resources{Memory: m.mem, Doorbells: m.vm, Logger: m.log}, kind)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	m.devices.virtio = append(m.devices.virtio, d)
	m.parts = append(m.parts, part{name: name, saved: d, works: d})
	return nil
}

func (m *Machine) addDisks() error {
	for i, c := range m.cfg.Disks {
		o := c.options()
		files := m.res.Disks[i]
		o.Backing = files[1:]
		m.res.Disks[i] = nil // the disk's now, also when it cannot be opened
		d, err := disk.OpenFile(files[0], o)
		if err != nil {
			return fmt.Errorf("disk %s: %w", c.Path, err)
		}
		m.devices.disks = append(m.devices.disks, d)
		if err := m.addVirtio(fmt.Sprintf("disk%d", i), block.New(d, block.Options{Queues: m.cfg.CPUs, Logger: m.log})); err != nil {
			return err
		}
	}
	return nil
}

func (m *Machine) addNets() error {
	for i, c := range m.cfg.Nets {
		mac, err := m.mac(i)
		if err != nil {
			return err
		}
		d, err := vnet.New(vnet.Options{
			Tap: m.res.Taps[i], MAC: mac, MTU: c.MTU, VHost: m.res.VHostNets[i], Memory: m.mem, Logger: m.log,
		})
		if err != nil {
			return fmt.Errorf("network card on %s: %w", c.Tap, err)
		}
		if err := m.addVirtio(fmt.Sprintf("net%d", i), d); err != nil {
			return err
		}
	}
	return nil
}

// mac returns the address of network card i: one that is not given is made from
// the machine's name, so that it is the same the next time.
func (m *Machine) mac(i int) (mac [6]byte, err error) {
	if text := m.cfg.Nets[i].MAC; text != "" {
		b, err := net.ParseMAC(text)
		if err != nil || len(b) != len(mac) {
			return mac, fmt.Errorf("mac %q: %w", text, err)
		}
		return [6]byte(b), nil
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d", m.cfg.Name, i))
	copy(mac[:], sum[:])
	mac[0] = mac[0]&^3 | 2 // local, unicast
	return mac, nil
}

// addOthers adds what a machine has at most one of.
func (m *Machine) addOthers() error {
	if m.cfg.RNG {
		if err := m.addVirtio("rng", rng.New(rng.Options{})); err != nil {
			return err
		}
	}
	if m.cfg.Balloon {
		d, err := balloon.New(discarder{m}, m.mem.Size())
		if err != nil {
			return err
		}
		m.devices.balloon = d
		if err := m.addVirtio("balloon", d); err != nil {
			return err
		}
	}
	if m.cfg.Console == ConsoleVirtio {
		d, err := vconsole.New(m.consoleWriter())
		if err != nil {
			return err
		}
		m.devices.hvc = d
		if err := m.addVirtio("console", d); err != nil {
			return err
		}
	}
	if m.cfg.VsockCID != 0 {
		d, err := vsock.New(m.res.VHostVsock, m.cfg.VsockCID, m.mem)
		if err != nil {
			return fmt.Errorf("vsock: %w", err)
		}
		return m.addVirtio("vsock", d)
	}
	return nil
}

// discarder gives the guest's free memory back to the host.
type discarder struct{ m *Machine }

// Discard is balloon.Memory's.
func (d discarder) Discard(gpa hypervisor.PhysAddr, size uint64) error {
	if err := d.m.mem.Discard(gpa, size); err != nil {
		return err
	}
	d.m.traps.Discarded(hypervisor.Range{Start: gpa, Size: size})
	return nil
}

// SetBalloon asks the guest to hold no more than size bytes.
func (m *Machine) SetBalloon(_ context.Context, size uint64) error {
	if m.ended() {
		return hypervisor.ErrGone
	}
	if m.devices.balloon == nil {
		return &hypervisor.NotSupportedError{What: "asking the guest for memory", Driver: "kvm", Remedy: "start the VM with a balloon"}
	}
	return m.devices.balloon.SetTarget(m.mem.Size() - min(size, m.mem.Size()))
}

// closeDevices is called when no vCPU runs any more.
func (m *Machine) closeDevices() error {
	var errs []error
	for _, d := range m.devices.virtio {
		errs = append(errs, d.Close())
	}
	if m.devices.balloon != nil {
		errs = append(errs, m.devices.balloon.Close())
	}
	if m.devices.hvc != nil {
		errs = append(errs, m.devices.hvc.Close())
	}
	if m.devices.pci != nil {
		errs = append(errs, m.devices.pci.Close())
	}
	for _, d := range m.devices.disks {
		errs = append(errs, d.Close())
	}
	if m.devices.console != nil {
		m.devices.console.close()
	}
	return errors.Join(errs...)
}

// consoleWriter returns where the guest's consoles print; nil: nowhere.
func (m *Machine) consoleWriter() io.Writer {
	if m.opt.Console == nil || m.cfg.Console == ConsoleNone {
		return nil
	}
	if m.devices.console == nil {
		m.devices.console = newConsoleOut(m.opt.Console, m.log)
	}
	return m.devices.console
}

func (m *Machine) panicked(k device.PanicKind) {
	detail := ""
	if k&device.PanicCrash != 0 {
		detail = "its crash kernel takes over"
	}
	m.event(EventPanicked, detail)
}

// PowerButton presses the power button: a guest that listens shuts down.
func (m *Machine) PowerButton() error {
	if m.ended() {
		return hypervisor.ErrGone
	}
	m.devices.power.Press()
	return nil
}

// Type gives the guest's console input, and returns how many bytes it took.
func (m *Machine) Type(p []byte) int {
	if m.devices.hvc != nil {
		return m.devices.hvc.Type(p)
	}
	return m.devices.serial.Type(p)
}

// load puts tables and kernel into memory and sets the boot processor's registers.
func (m *Machine) load() error {
	tables, err := acpi.Build(m.cfg.CPUs)
	if err != nil {
		return err
	}
	if _, err := m.mem.WritePhys(tables, acpi.RSDP); err != nil {
		return fmt.Errorf("ACPI tables: %w", err)
	}
	kernel, err := m.res.Kernel.Stat()
	if err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	c := boot.Config{
		Kernel:      boot.File{ReaderAt: m.res.Kernel, Size: kernel.Size()},
		CommandLine: m.cfg.CommandLine, RSDP: acpi.RSDP, GuestDecompresses: m.cfg.GuestDecompresses,
	}
	if m.res.Initrd != nil {
		size, err := m.res.Initrd.Seek(0, io.SeekEnd)
		if err != nil {
			return fmt.Errorf("initrd: %w", err)
		}
		c.Initrd = boot.File{ReaderAt: m.res.Initrd, Size: size}
	}
	regs, err := boot.Load(m.mem, c)
	debug.FreeOSMemory() // what decompressing took is not the machine's
	if err != nil {
		return fmt.Errorf("kernel %s: %w", m.cfg.Kernel, err)
	}
	return m.vm.VCPUs()[0].SetRegisters(&regs)
}
