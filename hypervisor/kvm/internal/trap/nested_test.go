package trap

import (
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// The same tests on this machine's own KVM, as far as that can do it, and on the
// beds: under NPT with two kernels (before and after Linux 6.2 lets a signal end
// a fault), under EPT what INT3 and single steps need.
func TestOnThisMachine(t *testing.T) {
	labtest.NeedKVM(t)
	all(t)
	debuggers(t)
}

func TestUnderNPT(t *testing.T) {
	labtest.NestedGroup(t, lab.NestedConfig{Memory: lab.GiB, Timeout: 5 * time.Minute, Tries: 2}, all)
}

func TestUnderNPTTrixie(t *testing.T) {
	cfg := lab.NestedConfig{Memory: lab.GiB, Timeout: 5 * time.Minute, Tries: 2}
	if !labtest.InsideNested() {
		cfg.Kernel = labtest.Kernel(t, lab.Trixie)
	}
	labtest.NestedGroup(t, cfg, all)
}

func TestUnderEPT(t *testing.T) {
	labtest.NestedGroup(t, lab.NestedConfig{Memory: lab.GiB, Bed: lab.EPT, Timeout: 9 * time.Minute}, func(t *testing.T) {
		all(t)
		debuggers(t)
	})
}

func all(t *testing.T) {
	holdKVM(t)
	t.Run("ReadOnlySlot", testReadOnlySlot)
	t.Run("Userfault", testUserfault)
	for _, m := range []hypervisor.Mechanism{hypervisor.MechanismReadOnlySlot, hypervisor.MechanismUserfault} {
		t.Run("Hammer/"+string(m), func(t *testing.T) { testHammer(t, m) })
	}
	t.Run("Read", testRead)
	t.Run("Execute", testExecute)
	t.Run("Breakpoint", testBreakpoint)
	t.Run("Step", testStep)
	t.Run("StepOne", testStepOne)
	t.Run("MSR", testMSR)
	t.Run("Port", testPort)
	t.Run("Shutdown", testShutdown)
	t.Run("Dirty", testDirty)
	t.Run("Remove", testRemove)
}

// debuggers is what QEMU's SVM cannot do: there INT3 does not leave the guest, and
// DR7 is loaded with a guest and not acted on.
func debuggers(t *testing.T) {
	t.Run("Replant", testReplant)
	t.Run("TwoProcessors", testTwoProcessors)
	t.Run("OwnINT3", testOwnINT3)
	t.Run("Hardware", testHardware)
	t.Run("HardwareSkip", testHardwareSkip)
}

// withoutNested skips a test outside of the beds for what a KVM without nested
// paging may lack.
func withoutNested(t *testing.T, lacks bool, what string) {
	t.Helper()
	if lacks && !labtest.InsideNested() {
		t.Skipf("this machine's KVM %s: the beds' do", what)
	}
}

// holdKVM keeps a VM with a vCPU for as long as the tests run. With the first VM,
// and with the first vCPU without an APIC, Linux patches its own code, on which
// processors emulated by QEMU's threads are seen to stumble now and then (an
// oops of the outer kernel: "int3", in __schedule).
func holdKVM(t *testing.T) {
	labtest.NeedKVM(t)
	sys, err := kvmapi.Open("")
	if err != nil {
		t.Fatal(err)
	}
	vm, err := sys.CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	v, err := vm.CreateVCPU(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, err := range []error{v.Close(), vm.Close(), sys.Close()} {
			if err != nil {
				t.Error(err)
			}
		}
	})
}
