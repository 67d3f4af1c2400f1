package linux

import (
	"encoding/json"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// Kinds of timers.
const (
	TimerWheel = "wheel"   // struct timer_list, counted in jiffies
	TimerHigh  = "hrtimer" // struct hrtimer, counted in nanoseconds
)

// Timer is a timer that is armed in the guest's kernel.
type Timer struct {
	Kind string `json:"kind"` // TimerWheel or TimerHigh
	CPU  int    `json:"cpu"`
	// Clock is what an hrtimer goes by: monotonic, realtime, boottime, tai;
	// jiffies for the wheel.
	Clock string `json:"clock"`
	// Expires is when it fires, on its clock: nanoseconds, of realtime since
	// 1970, of the others since the boot; of the wheel, jiffies.
	Expires int64 `json:"expires"`
	// Left is how many jiffies the CPU's wheel still waits: it fires a timer at the
	// end of its bucket, up to an eighth of its timeout behind Expires.
	Left int64 `json:"left,omitempty"`
	// Function is what is called, and whose it is.
	Function Code `json:"function"`
	// Work is what a delayed work does when its timer has fired.
	Work *Code `json:"work,omitempty"`
	// PID is the process or thread that waits for it, or whose timer it is; 0
	// where there is none.
	PID int `json:"pid,omitempty"`
	// KernelAddress is where the struct timer_list or hrtimer lies.
	KernelAddress hypervisor.VirtAddr `json:"kernel_address"`
	// Suspicious: Function, or Work, belongs to nothing that is known to be code.
	Suspicious bool `json:"suspicious"`
}

// MarshalJSON writes t with its strings made valid: see the package comment.
func (t Timer) MarshalJSON() ([]byte, error) {
	type plain Timer
	q := plain(t)
	q.Clock = jsonText(t.Clock)
	return json.Marshal(q)
}

// TimerList is what Timers found, sorted by CPU, kind, clock, expiry and kernel
// address.
type TimerList struct {
	Timers []Timer
	// Coverage tells what could not be read or believed.
	Coverage *introspect.Coverage
}
