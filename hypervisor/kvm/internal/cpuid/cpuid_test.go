package cpuid

import (
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

func leaf(t *testing.T, es []kvmapi.CPUIDEntry, f, index uint32) kvmapi.CPUIDEntry {
	t.Helper()
	for _, e := range es {
		if e.Function == f && e.Index == index {
			return e
		}
	}
	t.Fatalf("no leaf %#x.%d", f, index)
	return kvmapi.CPUIDEntry{}
}

// What Linux itself makes of it (nproc, the hypervisor flag, its clock) is seen
// by package vmm's tests; here is what it does not show.
func TestThisHost(t *testing.T) {
	labtest.NeedKVM(t)
	sys, err := kvmapi.Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer sys.Close()
	supported, err := sys.SupportedCPUID()
	if err != nil {
		t.Fatal(err)
	}
	for _, count := range []int{1, 2, 3, 4, 64} {
		for id := range count {
			es := For(supported, true, id, count)
			f := leaf(t, es, leafFeatures, 0)
			if f.EBX>>24 != uint32(id) || f.EBX>>16&0xff != uint32(count) || f.ECX&ecxHypervisor == 0 || f.ECX&(ecxVMX|ecxMonitor) != 0 {
				t.Errorf("vCPU %d of %d: leaf 1 %+v", id, count, f)
			}
			if has(supported, leafTopology) {
				// The x2APIC ID shifted by the width of the package is the package's:
				// the same for all.
				top := leaf(t, es, leafTopology, 1)
				if top.EDX != uint32(id) || top.EDX>>top.EAX != 0 || top.EBX != uint32(count) {
					t.Errorf("vCPU %d of %d: topology %+v", id, count, top)
				}
			}
			seen := map[[2]uint32]bool{}
			for _, e := range es {
				k := [2]uint32{e.Function, e.Index}
				if seen[k] && e.Flags&kvmapi.CPUIDSignificantIndex != 0 {
					t.Errorf("leaf %#x.%d twice", e.Function, e.Index)
				}
				seen[k] = true
			}
		}
	}
}

func TestNothingThatCannotBeKept(t *testing.T) {
	all := kvmapi.CPUIDEntry{EAX: ^uint32(0), EBX: ^uint32(0), ECX: ^uint32(0), EDX: ^uint32(0)}
	var supported []kvmapi.CPUIDEntry
	for _, f := range []uint32{leafFeatures, leafPMU, leafExtended, leafPower, leafSVM, leafSEV, leafAddress} {
		e := all
		e.Function = f
		supported = append(supported, e)
	}
	es := For(supported, false, 0, 1)
	if e := leaf(t, es, leafExtended, 0); e.ECX&ecxSVM != 0 {
		t.Error("SVM is shown")
	}
	if e := leaf(t, es, leafPower, 0); e.EDX&edxInvTSC != 0 {
		t.Error("an invariant TSC is promised")
	}
	for _, f := range []uint32{leafPMU, leafSVM, leafSEV} {
		if e := leaf(t, es, f, 0); e.EAX|e.EBX|e.ECX|e.EDX != 0 {
			t.Errorf("leaf %#x: %+v", f, e)
		}
	}
	if e := leaf(t, es, leafFeatures, 0); e.EDX&edxHTT != 0 {
		t.Error("one processor has siblings")
	}
}
