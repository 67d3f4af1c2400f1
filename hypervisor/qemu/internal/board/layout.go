// Package board knows where QEMU's x86 machines put main memory in the
// guest-physical address space, as far as that follows from the command line.
//
// Source: QEMU's hw/i386/pc_piix.c (pc_init1), pc_q35.c (pc_q35_init),
// microvm.c (microvm_memory_init) and pc.c (pc_memory_init), as of 7.2; the
// tests compare every case with a running QEMU's `info mtree -f`.
//
// The package must not import any other package of Vantage but hypervisor and
// internal/cmdline.
package board

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/cmdline"
)

// Addresses of the x86 boards, in bytes.
const (
	fourGiB = 4 << 30

	// The AMD HyperTransport range that the IOMMU keeps for itself: memory that
	// would reach it starts at 1 TiB instead (hw/i386/pc.c, AMD_HT_START).
	amdHTStart    = 0xfd_0000_0000
	amdAbove1TiB  = 0x100_0000_0000
	hole64I440fx  = 2 << 30     // I440FX_PCI_HOST_HOLE64_SIZE_DEFAULT
	hole64Q35     = 32 << 30    // Q35_PCI_HOST_HOLE64_SIZE_DEFAULT
	defaultBelow4 = 0xe000_0000 // i440fx: 3.5 GiB
)

// The windows below 1 MiB, where other things than main memory may be seen:
// video memory from VGAStart on, ROM up to LegacyEnd.
const (
	VGAStart  = 0xa0000
	LegacyEnd = 0x100000
)

// Segment is a run of main memory.
type Segment struct {
	Start  hypervisor.PhysAddr
	Size   uint64 // bytes
	Offset uint64 // of Start in main memory, bytes
}

// Layout returns where main memory lies, sorted by address. It returns a *hypervisor.NotSupportedError for machines
// whose layout cannot be told from their command line.
func Layout(c *cmdline.Config, kvm bool, hostVendor string) ([]Segment, error) {
	size := c.MemoryBytes()
	if size >= math.MaxInt64/2 {
		return nil, fmt.Errorf("memory size %#x is out of range", size)
	}
	b, err := parseMachine(c.MachineType())
	if err != nil {
		return nil, err
	}
	low := b.below4G(size, maxBelow4G(c))
	if size <= low {
		return []Segment{{Size: size}}, nil
	}
	above := hypervisor.PhysAddr(fourGiB)
	if b.amdHole != no && crossesHT(c, b, size-low) {
		switch v := vendor(c.CPU, kvm, hostVendor); {
		case v == "AuthenticAMD" && b.amdHole == yes:
			above = amdAbove1TiB
		case v == "" || v == "AuthenticAMD":
			return nil, &hypervisor.NotSupportedError{
				What:   "memory layout of a VM near 1 TiB whose CPU vendor or machine version is not known",
				Driver: "qemu",
				Remedy: "start QEMU with -qmp unix:PATH,server=on,wait=off",
			}
		}
	}
	segs := []Segment{{Size: low}, {Start: above, Size: size - low, Offset: low}}
	if low == 0 {
		segs = segs[1:]
	}
	return segs, nil
}

// maxBelow4G returns -machine max-ram-below-4g=, 0 when not given.
func maxBelow4G(c *cmdline.Config) uint64 {
	n, err := cmdline.ParseSize(c.Machine["max-ram-below-4g"], 1)
	if err != nil {
		return 0
	}
	return n
}

// family is a kind of board.
type family int

const (
	i440fx family = iota
	q35
	microvm
)

// known is an answer that may not be there.
type known int

const (
	no known = iota
	yes
	unknown
)

type machine struct {
	family    family
	gigaAlign bool  // i440fx: RAM that does not fit below is split at a GiB (since 2.0)
	amdHole   known // memory keeps clear of AMD's HyperTransport range (since 7.1)
}

func parseMachine(t string) (machine, error) {
	switch {
	case t == "pc":
		return machine{family: i440fx, gigaAlign: true, amdHole: yes}, nil
	case t == "isapc":
		return machine{family: i440fx, gigaAlign: true}, nil
	case t == "q35":
		return machine{family: q35, amdHole: yes}, nil
	case t == "microvm":
		return machine{family: microvm}, nil
	case strings.HasPrefix(t, "pc-i440fx-"):
		v, ok := version(strings.TrimPrefix(t, "pc-i440fx-"))
		return machine{family: i440fx, gigaAlign: !ok || v >= 2_00, amdHole: since71(v, ok)}, nil
	case strings.HasPrefix(t, "pc-q35-"):
		return machine{family: q35, amdHole: since71(version(strings.TrimPrefix(t, "pc-q35-")))}, nil
	}
	return machine{}, &hypervisor.NotSupportedError{
		What:   fmt.Sprintf("memory layout of machine type %.64q", t),
		Driver: "qemu",
		Remedy: "start QEMU with -qmp unix:PATH,server=on,wait=off, or with machine type pc, q35 or microvm",
	}
}

func since71(v int, ok bool) known {
	switch {
	case !ok:
		return unknown
	case v >= 7_01:
		return yes
	}
	return no
}

// version returns the version of a machine type as major*100+minor. It is not
// known for a distribution's own names ("rhel7.6.0", "focal"); all of those
// split RAM as QEMU 2.0 and later do.
func version(s string) (v int, ok bool) {
	major, rest, ok := strings.Cut(s, ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, err1 := strconv.ParseUint(major, 10, 8)
	b, err2 := strconv.ParseUint(minor, 10, 8)
	if !ok || err1 != nil || err2 != nil || b > 99 {
		return 0, false
	}
	return int(a)*100 + int(b), true
}

// below4G returns how much of size bytes lies below 4 GiB at most.
func (m machine) below4G(size, user uint64) uint64 {
	switch m.family {
	case q35:
		low := uint64(0xb000_0000)
		if size >= low {
			low = 0x8000_0000
		}
		if user != 0 {
			low = min(low, user)
		}
		return low
	case microvm:
		return 0xc000_0000
	case i440fx:
	}
	low := uint64(defaultBelow4)
	if user != 0 {
		low = user
	}
	if size >= low && m.gigaAlign {
		low = min(low, 0xc000_0000)
	}
	return low
}

// crossesHT reports whether the highest address that the machine may use lies
// in AMD's HyperTransport range (pc_max_used_gpa).
func crossesHT(c *cmdline.Config, m machine, above uint64) bool {
	top := uint64(fourGiB) + above
	if size := c.MemoryBytes(); c.MaxMem > size {
		// Device memory; each slot may cost a GiB of alignment.
		top = alignUp(top, 1<<30) + c.MaxMem - size + c.Slots<<30
	}
	hole := uint64(hole64I440fx)
	if m.family == q35 {
		hole = hole64Q35
	}
	return alignUp(top, 1<<30)+hole-1 >= amdHTStart
}

func alignUp(v, a uint64) uint64 { return (v + a - 1) &^ (a - 1) }

// vendor returns the CPUID vendor that the guest's CPUs show, "" when it cannot
// be told.
func vendor(cpu string, kvm bool, host string) string {
	model, features, _ := strings.Cut(cpu, ",")
	for f := range strings.SplitSeq(features, ",") {
		if v, ok := strings.CutPrefix(f, "vendor="); ok {
			return v
		}
	}
	if kvm {
		return host // whatever the model
	}
	if model == "" {
		model = "qemu64"
	}
	has := func(names ...string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(model, n) })
	}
	switch {
	case has("EPYC", "Opteron", "phenom", "athlon", "qemu64", "max"):
		return "AuthenticAMD"
	case has("Conroe", "Penryn", "Nehalem", "Westmere", "SandyBridge", "IvyBridge", "Haswell", "Broadwell", "Skylake",
		"Cascadelake", "Cooperlake", "Icelake", "SapphireRapids", "GraniteRapids", "SierraForest", "ClearwaterForest",
		"Snowridge", "Knights", "Denverton", "core2duo", "coreduo", "kvm64", "n270", "pentium"):
		return "GenuineIntel"
	}
	return ""
}
