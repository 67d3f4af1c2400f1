package vmm

import (
	"errors"
	"fmt"
	"net"
	"regexp"
)

// Config says what a machine is made of. It is plain data: as JSON it goes from
// who starts a machine to the process that runs it, and into saved machines.
type Config struct {
	Name        string `json:"name"`
	Memory      uint64 `json:"memory"` // bytes, whole MiB
	CPUs        int    `json:"cpus"`
	Kernel      string `json:"kernel"` // path: bzImage or ELF with a PVH entry
	Initrd      string `json:"initrd,omitempty"`
	CommandLine string `json:"command_line,omitempty"`
	// GuestDecompresses leaves a bzImage to its own decompressor, for a kernel that
	// does not come up otherwise.
	GuestDecompresses bool `json:"guest_decompresses,omitempty"`

	Disks   []DiskConfig `json:"disks,omitempty"`
	Nets    []NetConfig  `json:"nets,omitempty"`
	Console Console      `json:"console"` // what the guest's console is
	RNG     bool         `json:"rng,omitempty"`
	Balloon bool         `json:"balloon,omitempty"`
	// VsockCID is the context ID of a vsock device; 0: none.
	VsockCID uint32 `json:"vsock_cid,omitempty"`

	// NoNestedPaging lets a machine run on a KVM without EPT or NPT, which has
	// most traps but is slow: for tests.
	NoNestedPaging bool `json:"no_nested_paging,omitempty"`
}

// DiskConfig is a virtio-blk device.
type DiskConfig struct {
	Path     string `json:"path"`
	Format   string `json:"format,omitempty"` // "raw", "qcow2"; empty: told by the image
	ReadOnly bool   `json:"read_only,omitempty"`
	Serial   string `json:"serial,omitempty"` // at most 20 bytes
}

// NetConfig is a virtio-net device on a tap interface.
type NetConfig struct {
	Tap   string `json:"tap"`
	MAC   string `json:"mac,omitempty"` // empty: made from the machine's name
	VHost Vhost  `json:"vhost,omitempty"`
	MTU   int    `json:"mtu,omitempty"` // bytes; 0: not told to the guest
}

// Vhost says whether packets go through the kernel's vhost-net.
type Vhost string

// Values of Vhost.
const (
	VhostOff  Vhost = ""     // packets go through this process, where they can be seen
	VhostOn   Vhost = "on"   // an error where the host has none
	VhostAuto Vhost = "auto" // where the host has it
)

// Console is the device that is the guest's console.
type Console string

// Consoles.
const (
	ConsoleSerial Console = "serial" // COM1: ttyS0; each byte is an exit
	ConsoleVirtio Console = "virtio" // hvc0, and COM1 for the early boot
	ConsoleNone   Console = "none"
)

// Limits of a machine.
const (
	MinMemory = 16 << 20
	MaxMemory = 512 << 30 // KVM's processors have at least 40 bits of physical address
	MaxCPUs   = 64
	maxDisks  = 16
	maxNets   = 8
)

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// CheckName tells whether a machine may have this name, which is part of paths.
func CheckName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("name %q: want 1 to 64 letters, digits, dots, dashes or underscores, a letter or digit first", name)
	}
	return nil
}

// Check returns what is wrong with c, without looking at any file.
func (c *Config) Check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if err := CheckName(c.Name); err != nil {
		errs = append(errs, err)
	}
	switch {
	case c.Memory < MinMemory:
		bad("memory of %d bytes: a guest needs at least %d MiB", c.Memory, MinMemory>>20)
	case c.Memory > MaxMemory:
		bad("memory of %d bytes: at most %d GiB", c.Memory, uint64(MaxMemory>>30))
	case c.Memory%(1<<20) != 0:
		bad("memory of %d bytes: want whole MiB", c.Memory)
	}
	if c.CPUs < 1 || c.CPUs > MaxCPUs {
		bad("%d vCPUs: want 1 to %d", c.CPUs, MaxCPUs)
	}
	if c.Kernel == "" {
		bad("no kernel: name a bzImage (/boot/vmlinuz-…) or an ELF vmlinux with a PVH entry")
	}
	if len(c.Disks) > maxDisks {
		bad("%d disks: at most %d", len(c.Disks), maxDisks)
	}
	for _, d := range c.Disks {
		switch {
		case d.Path == "":
			bad("a disk has no path")
		case d.Format != "" && d.Format != "raw" && d.Format != "qcow2":
			bad("disk %s: format %q: want raw or qcow2", d.Path, d.Format)
		case len(d.Serial) > 20:
			bad("disk %s: serial %q is longer than 20 bytes", d.Path, d.Serial)
		}
	}
	if len(c.Nets) > maxNets {
		bad("%d network cards: at most %d", len(c.Nets), maxNets)
	}
	for _, n := range c.Nets {
		if n.Tap == "" || len(n.Tap) > 15 {
			bad("network card: tap %q: want the name of a tap interface", n.Tap)
		}
		if n.MAC != "" {
			if m, err := net.ParseMAC(n.MAC); err != nil || len(m) != 6 || m[0]&1 != 0 {
				bad("network card on %s: mac %q: want six bytes of a unicast address, like 52:54:00:12:34:56", n.Tap, n.MAC)
			}
		}
		if n.VHost != VhostOff && n.VHost != VhostOn && n.VHost != VhostAuto {
			bad("network card on %s: vhost %q: want on or auto", n.Tap, n.VHost)
		}
		if n.MTU != 0 && (n.MTU < 68 || n.MTU > 65535) {
			bad("network card on %s: mtu %d: want 68 to 65535", n.Tap, n.MTU)
		}
	}
	switch c.Console {
	case "", ConsoleSerial, ConsoleVirtio, ConsoleNone:
	default:
		bad("console %q: want serial, virtio or none", c.Console)
	}
	return errors.Join(errs...)
}
