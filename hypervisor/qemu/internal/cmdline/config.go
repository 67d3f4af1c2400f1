// Package cmdline reads a QEMU command line as far as it tells what the VM is:
// its name, machine, memory, CPUs and monitors.
//
// The command line is a claim of whoever started the process: nothing here
// trusts it. Everything is bounded, what is not understood is passed over, and
// the result says what was seen, not what is true. The package must not import
// any other package of Vantage.
package cmdline

import (
	"slices"
	"strings"
)

// Bounds on what is believed of a command line.
const (
	MaxBytes   = 1 << 20 // of a command line, and of each -readconfig file
	maxArgs    = 16384
	maxName    = 255 // bytes of a name; libvirt and Proxmox allow fewer
	maxObjects = 4096
	maxConfigs = 16 // -readconfig files
)

// DefaultMemory is what QEMU's x86 machines get without -m
// (hw/core/machine.c), in bytes.
const DefaultMemory = 128 << 20

// Config is what a command line says of a VM.
type Config struct {
	Name     string // -name, valid UTF-8, at most 255 bytes; "" when not given
	UUID     string
	Machine  map[string]string // -machine's keys; the type is under "type"
	CPU      string            // -cpu, features included
	KVM      bool              // started with KVM as its first choice
	Memory   uint64            // bytes of main memory; 0 when not given
	MaxMem   uint64            // -m maxmem=, bytes; 0 when not given
	Slots    uint64            // -m slots=
	CPUs     int               // -smp
	MemPath  string            // -mem-path
	Incoming bool              // -incoming: memory comes from elsewhere
	Objects  []Object
	Nodes    []Node
	Devices  []map[string]string // -device; the driver is under "driver"
	Monitors []Monitor
	Unparsed []string // options whose values were not understood, by name

	chardevs map[string]map[string]string
	mons     []map[string]string
}

// Object is one -object.
type Object struct {
	Type  string // "memory-backend-file"
	ID    string
	Props map[string]string
}

// Node is one -numa node.
type Node struct {
	ID     int
	MemDev string // id of its memory backend; "" with the older mem=
}

// Monitor is a QMP monitor on a socket that QEMU listens on.
type Monitor struct {
	Path string // of a unix socket, as given; "@…" is abstract
	FD   int    // number of an inherited listening socket; -1: none
	Host string // of a TCP socket
	Port string
}

// MachineType returns the machine's type, "pc" when none is given: QEMU's own
// default on x86.
func (c *Config) MachineType() string {
	if t := c.Machine["type"]; t != "" {
		return t
	}
	return "pc"
}

// Object returns the object with the given id.
func (c *Config) Object(id string) (Object, bool) {
	i := slices.IndexFunc(c.Objects, func(o Object) bool { return o.ID == id })
	if i < 0 {
		return Object{}, false
	}
	return c.Objects[i], true
}

// MemoryBytes returns the size of main memory in bytes: -m, else that of the
// machine's backends, else QEMU's default.
func (c *Config) MemoryBytes() uint64 {
	if c.Memory != 0 {
		return c.Memory
	}
	var sum uint64
	for _, n := range c.Nodes {
		if o, ok := c.Object(n.MemDev); ok {
			sum += o.Size()
		}
	}
	if sum != 0 {
		return sum
	}
	if o, ok := c.Object(c.Machine["memory-backend"]); ok && o.Size() != 0 {
		return o.Size()
	}
	return DefaultMemory
}

// Encrypted returns the id of the object that encrypts the guest's memory
// (AMD SEV, Intel TDX), or "".
func (c *Config) Encrypted() string {
	for _, key := range []string{"confidential-guest-support", "memory-encryption"} {
		if id := c.Machine[key]; id != "" {
			return id
		}
	}
	return ""
}

// HotplugMemory reports whether the command line has DIMMs or other memory
// devices beside main memory.
func (c *Config) HotplugMemory() bool {
	return slices.ContainsFunc(c.Devices, func(d map[string]string) bool {
		switch d["driver"] {
		case "pc-dimm", "nvdimm", "virtio-mem-pci", "virtio-mem", "virtio-pmem-pci":
			return true
		}
		return false
	})
}

// Size returns the object's size in bytes, 0 when it has none.
func (o Object) Size() uint64 {
	n, err := ParseSize(o.Props["size"], 1)
	if err != nil {
		return 0
	}
	return n
}

// Bool reports whether property key is on, or def when it is not given.
func (o Object) Bool(key string, def bool) bool {
	switch o.Props[key] {
	case "on", "yes", "true", "y":
		return true
	case "off", "no", "false", "n":
		return false
	}
	return def
}

// IsBackend reports whether the object is a memory backend.
func (o Object) IsBackend() bool { return strings.HasPrefix(o.Type, "memory-backend-") }

// Shared reports whether the backend's memory is mapped shared.
func (o Object) Shared() bool { return o.Bool("share", o.Type == "memory-backend-memfd") }
