package introspect

import (
	"encoding/json"
	"errors"
	"strconv"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/vantage-vmi/vantage/hypervisor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// However much a guest gives to complain of, what is kept is bounded and all of
// it is counted.
func TestCoverageIsBounded(t *testing.T) {
	var c Coverage
	if !c.Complete() || c.Total() != 0 || len(c.Problems()) != 0 {
		t.Error("the zero value is not complete")
	}
	const walkers, each = 8, 1000
	var wg sync.WaitGroup
	for w := range walkers {
		wg.Go(func() {
			for i := range each {
				c.Add("walk "+strconv.Itoa(w), hypervisor.VirtAddr(i), errors.New("wild pointer"))
				_ = c.Problems()
			}
		})
	}
	wg.Wait()
	if c.Complete() || c.Total() != walkers*each || len(c.Problems()) != MaxProblems {
		t.Errorf("%d problems, %d kept", c.Total(), len(c.Problems()))
	}
	c.Problems()[0].What = "changed"
	if c.Problems()[0].What == "changed" {
		t.Error("the caller was given the list itself")
	}
}

func TestCoverageMerge(t *testing.T) {
	var a, b Coverage
	a.Add("first", 1, errors.New("x"))
	a.Merge(nil)
	for range 3 * MaxProblems {
		b.Add("second", 2, errors.New("y"))
	}
	a.Merge(&b)
	if a.Total() != 3*MaxProblems+1 || len(a.Problems()) != MaxProblems || a.Problems()[0].What != "first" || a.Problems()[1].What != "second" {
		t.Errorf("%d problems, %d kept: %v", a.Total(), len(a.Problems()), a.Problems()[:2])
	}
	a.Merge(&a)
	if a.Total() != 6*MaxProblems+2 {
		t.Errorf("%d problems after a merge with itself", a.Total())
	}
}

func TestProblemText(t *testing.T) {
	p := Problem{What: "tasks list", Addr: 0xffff888000001000, Err: "cycle"}
	if got := p.String(); got != "tasks list at 0xffff888000001000: cycle" {
		t.Error(got)
	}
	if b, err := json.Marshal(p); err != nil || string(b) != `{"what":"tasks list","addr":"0xffff888000001000","error":"cycle"}` {
		t.Errorf("%s, %v", b, err)
	}
	p.Addr = 0
	if b, err := json.Marshal(p); err != nil || p.String() != "tasks list: cycle" || string(b) != `{"what":"tasks list","error":"cycle"}` {
		t.Errorf("%s, %s, %v", p, b, err)
	}
}
