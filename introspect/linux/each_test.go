package linux

import (
	"context"
	"errors"
	"testing"

	"github.com/vantage-vmi/vantage/introspect"
)

// A loop gives all that was listed, then one error at most, and ends when it is
// left.
func TestEach(t *testing.T) {
	f := newFake(t, 5)
	count := func(ctx context.Context, most int) (n int, last error) {
		for p, err := range f.guest.EachProcess(ctx, ProcessOptions{}) {
			if err != nil {
				if p.PID != 0 || last != nil {
					t.Errorf("process %d with error %v after %v", p.PID, err, last)
				}
				last = err
				continue
			}
			if n++; n == most {
				break
			}
		}
		return n, last
	}
	if n, err := count(t.Context(), 0); n != 5 || err != nil {
		t.Errorf("%d processes, %v", n, err)
	}
	if n, err := count(t.Context(), 2); n != 2 || err != nil {
		t.Errorf("left after two: %d processes, %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := count(ctx, 0); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %d processes, %v", n, err)
	}
	f.put64(f.member(f.processes[1].task, "task_struct.tasks"), 0x4141414141414141)
	var missed *introspect.IncompleteError
	if n, err := count(t.Context(), 0); n != 5 || !errors.As(err, &missed) || missed.Total == 0 || len(missed.Problems) == 0 {
		t.Errorf("broken: %d processes, %v", n, err)
	}
}
