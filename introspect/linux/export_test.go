package linux

import (
	"fmt"
	"testing"
)

// exampleTB is what newFake needs of a test.
type exampleTB struct{ testing.TB }

func (exampleTB) Helper()           {}
func (exampleTB) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

// NewFakeGuest returns a guest of n processes and two modules for examples.
func NewFakeGuest(n int) *Guest { return newFake(exampleTB{}, n).guest }

// BreakFakeGuest is NewFakeGuest with a list of processes that leads nowhere.
func BreakFakeGuest(n int) *Guest {
	f := newFake(exampleTB{}, n)
	f.put64(f.member(f.processes[1].task, "task_struct.tasks"), 0x4141414141414141)
	return f.guest
}
