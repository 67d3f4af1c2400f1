// Package virtio is virtio 1.2 over PCI, modern only: it negotiates features,
// runs queues and interrupts, saves and restores, and contains a guest that
// breaks the rules. What a device does it leaves to a Kind; the kinds are the
// packages below this one.
//
// # Wiring
//
// A machine makes one pci.Host, and for each device a Kind and a Device:
//
//	host, err := pci.NewHost(pci.Config{Ports: &ports, MMIO: &mmio, MSI: vm, Line: vm.Line, …})
//	d, err := virtio.New(host, virtio.Resources{Memory: mem, Doorbells: vm, Logger: log}, block.New(disk, …))
//
// The order in which devices are made gives their slots, so it must be the same
// for a machine that is restored. A Device is a bus.Saved and a bus.Quiescer. It
// is made quiet: nothing moves before the first Resume. RestoreState may be
// called on a quiet device at any time: given the state from before the machine
// ran, it is the device's reset. Close comes when no vCPU runs any more and
// before that of the host and of what the Kind stands on (disk, tap), which is
// the caller's.
//
// The package must not import anything but packages hypervisor, bus, pci and
// ring; no kind of device is known to it.
package virtio
