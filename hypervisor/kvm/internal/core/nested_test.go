package core

import (
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// The same tests under KVM with nested paging, where TestOnThisMachine has what
// this machine's own KVM can do.
func TestUnderNPT(t *testing.T) {
	labtest.NestedGroup(t, lab.NestedConfig{Memory: lab.GiB}, all)
}

func TestOnThisMachine(t *testing.T) {
	labtest.NeedKVM(t)
	all(t)
}

func all(t *testing.T) {
	t.Run("Exits", testExits)
	t.Run("Stop", testStop)
	t.Run("Exclusive", testExclusive)
	t.Run("CloseWhileStopped", testCloseWhileStopped)
	t.Run("Interrupts", testInterrupts)
	t.Run("Doorbell", testDoorbell)
}
