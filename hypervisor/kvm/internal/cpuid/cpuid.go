// Package cpuid makes what a guest's processors say of themselves out of what KVM
// can do on this host: all that the host has and KVM supports, less what a saved
// guest would miss elsewhere or what would lead a guest to hardware that is not
// there; with the topology of the machine.
//
// It must not import anything of Vantage but package kvmapi.
package cpuid

import "github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"

// Leaves and bits (Intel SDM 2A, CPUID; AMD APM 3, appendix E;
// Documentation/virt/kvm/x86/cpuid.rst).
const (
	leafFeatures   = 0x1
	leafCache      = 0x4
	leafMonitor    = 0x5
	leafThermal    = 0x6
	leafPMU        = 0xa
	leafTopology   = 0xb
	leafTopologyV2 = 0x1f
	leafExtended   = 0x8000_0001
	leafAddress    = 0x8000_0008
	leafSVM        = 0x8000_000a
	leafAMDCache   = 0x8000_001d
	leafAMDTopo    = 0x8000_001e
	leafSEV        = 0x8000_001f
	leafPower      = 0x8000_0007

	ecxMonitor    = 1 << 3
	ecxDS64       = 1 << 2
	ecxVMX        = 1 << 5
	ecxPDCM       = 1 << 15
	ecxDeadline   = 1 << 24
	ecxHypervisor = 1 << 31
	edxDS         = 1 << 21
	edxHTT        = 1 << 28
	ecxCmpLegacy  = 1 << 1
	ecxSVM        = 1 << 2
	ecxTopoExt    = 1 << 22
	edxInvTSC     = 1 << 8 // of leafPower
)

// For returns the CPUID entries of vCPU index out of count, each a core of one
// package. deadline says that KVM's APIC has the TSC deadline mode
// (KVM_CAP_TSC_DEADLINE_TIMER), which it does not list with what it supports;
// without it a guest calibrates the timer for a tenth of a second when it boots.
func For(supported []kvmapi.CPUIDEntry, deadline bool, index, count int) []kvmapi.CPUIDEntry {
	id, n := uint32(index), uint32(count)
	var out []kvmapi.CPUIDEntry
	for _, e := range supported {
		switch e.Function {
		case leafFeatures:
			e.EBX = e.EBX&0x0000_ffff | id<<24 | min(n, 255)<<16
			e.ECX = e.ECX&^(ecxMonitor|ecxDS64|ecxVMX|ecxPDCM) | ecxHypervisor
			if deadline {
				e.ECX |= ecxDeadline
			}
			e.EDX &^= edxDS | edxHTT
			if n > 1 {
				e.EDX |= edxHTT
			}
		case leafCache:
			// Cores of the package, and how many share this cache: the last level is
			// everyone's, the others are a core's own.
			if e.EAX&31 != 0 {
				share := uint32(0)
				if e.EAX>>5&7 >= 3 {
					share = pow2(n) - 1
				}
				e.EAX = e.EAX&0x3fff | share<<14 | min(pow2(n)-1, 63)<<26
			}
		case leafMonitor, leafPMU:
			e.EAX, e.EBX, e.ECX, e.EDX = 0, 0, 0, 0
		case leafThermal:
			e.EAX, e.EBX, e.ECX, e.EDX = e.EAX&(1<<2), 0, 0, 0 // ARAT: the APIC timer runs always
		case leafTopology, leafTopologyV2:
			continue // made below
		case leafExtended:
			e.ECX &^= ecxSVM | ecxCmpLegacy | ecxTopoExt
			if n > 1 {
				e.ECX |= ecxCmpLegacy & amdOnly(supported)
			}
		case leafPower:
			e.EDX &^= edxInvTSC // a restored guest may find another frequency
		case leafAddress:
			e.ECX = e.ECX&^0xf0ff | (n-1)&0xff | shift(n)<<12
		case leafSVM, leafSEV, leafAMDCache, leafAMDTopo:
			e.EAX, e.EBX, e.ECX, e.EDX = 0, 0, 0, 0
		}
		out = append(out, e)
	}
	if has(supported, leafTopology) {
		out = append(out, topology(leafTopology, id, n)...)
	}
	return out
}

// topology is the extended topology leaf: one thread a core, count cores.
func topology(leaf, id, count uint32) []kvmapi.CPUIDEntry {
	entry := func(index, width, n, kind uint32) kvmapi.CPUIDEntry {
		return kvmapi.CPUIDEntry{
			Function: leaf, Index: index, Flags: kvmapi.CPUIDSignificantIndex,
			EAX: width, EBX: n, ECX: kind<<8 | index, EDX: id,
		}
	}
	const thread, core = 1, 2
	return []kvmapi.CPUIDEntry{
		entry(0, 0, 1, thread), entry(1, shift(count), count, core), entry(2, 0, 0, 0),
	}
}

func has(es []kvmapi.CPUIDEntry, leaf uint32) bool {
	for _, e := range es {
		if e.Function == leaf {
			return true
		}
	}
	return false
}

// amdOnly is all ones on a processor of AMD or Hygon.
func amdOnly(es []kvmapi.CPUIDEntry) uint32 {
	for _, e := range es {
		if e.Function == 0 && (e.EBX == 0x6874_7541 || e.EBX == 0x6f67_7948) { // "Auth", "Hygo"
			return ^uint32(0)
		}
	}
	return 0
}

// shift is the number of bits that count APIC IDs take.
func shift(count uint32) uint32 {
	var s uint32
	for 1<<s < count {
		s++
	}
	return s
}

func pow2(n uint32) uint32 { return 1 << shift(n) }
