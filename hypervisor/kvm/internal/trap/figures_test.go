package trap

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/bus"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// envFigures lets TestFigures measure; the benchmark program sets it.
const envFigures = "VANTAGE_FIGURES"

// TestFigures measures what traps cost in the EPT bed, whose clock counts
// instructions. It prints a line a figure for internal/bench, which holds the
// promises.
func TestFigures(t *testing.T) {
	if os.Getenv(envFigures) == "" {
		t.Skip("measures for minutes: make bench runs it")
	}
	cfg := lab.NestedConfig{Memory: lab.GiB, Bed: lab.EPT, ClaimedClock: true, Timeout: 20 * time.Minute, Env: []string{envFigures + "=1"}}
	if os.Getenv(envFigures) == "here" { // quick, for a look at what has changed
		figures(t)
		return
	}
	labtest.NestedGroup(t, cfg, func(t *testing.T) { t.Run("Traps", figures) })
}

// nothing is a device whose port costs an exit and no more.
type nothing struct{}

func (nothing) Read(uint64, []byte)  {}
func (nothing) Write(uint64, []byte) {}

// stamps says when its port was written to, by the vCPU's own clock: a goroutine
// that waits for the guest comes in its turn only, where there is one processor.
type stamps struct{ at []time.Time }

func (*stamps) Read(uint64, []byte)    {}
func (s *stamps) Write(uint64, []byte) { s.at = append(s.at, time.Now()) }

const (
	portStamp = 0x96

	portBare = 0x97
	bare     = "port-exit"
)

// costs are what is done once in each round of a guest's loop.
var costs = []struct {
	name string
	code string // what the loop does
	trap hypervisor.Trap
}{
	{bare, "e6 97", hypervisor.Trap{}}, // out 0x97, al
	{"page-write", "48 89 43 10", hypervisor.Trap{Kind: hypervisor.TrapPage, Access: hypervisor.AccessWrite, Addr: dataAt + 0x10, Size: 8}},
	{"page-write-beside", "48 89 43 20", hypervisor.Trap{Kind: hypervisor.TrapPage, Access: hypervisor.AccessWrite, Addr: dataAt + 0x10, Size: 8}},
	{"page-no-ram", "48 8b 43 10", hypervisor.Trap{Kind: hypervisor.TrapPage, Access: hypervisor.AccessRead, Addr: dataAt + 0x10, Size: 8}},
	{"int3-nop", "0f 1f 44 00 00", hypervisor.Trap{Kind: hypervisor.TrapBreakpoint, Addr: codeAt + 13}},
	{"int3-push", "55 5d", hypervisor.Trap{Kind: hypervisor.TrapBreakpoint, Addr: codeAt + 13}}, // push rbp; pop rbp
	{"int3-step", "0f 31", hypervisor.Trap{Kind: hypervisor.TrapBreakpoint, Addr: codeAt + 13}}, // rdtsc: by the processor alone
	{"hardware-x", "0f 31", hypervisor.Trap{Kind: hypervisor.TrapHardware, Access: hypervisor.AccessExecute, Virt: codeAt + 13}},
	{"hardware-w", "48 89 43 10", hypervisor.Trap{Kind: hypervisor.TrapHardware, Access: hypervisor.AccessWrite, Virt: dataAt + 0x10, Size: 8}},
	{"msr-read", "48 89 ce b9 82 00 00 c0 0f 32 89 f1", hypervisor.Trap{Kind: hypervisor.TrapMSR, Access: hypervisor.AccessRead, MSR: msrLSTAR}},
	{"uffd-write", "48 89 43 10", hypervisor.Trap{Kind: hypervisor.TrapPage, Access: hypervisor.AccessWrite, Addr: dataAt + 0x10, Size: 8, Mechanism: hypervisor.MechanismUserfault}},
}

func figures(t *testing.T) {
	holdKVM(t)
	took := map[string][]time.Duration{}
	for range 5 { // in turn, where the clock is not exact
		for _, c := range costs {
			if c.trap.Kind == hypervisor.TrapHardware && losesRF() {
				continue
			}
			rounds := 1000
			if c.trap.Mechanism == hypervisor.MechanismUserfault {
				rounds = 40
			}
			d, err := costOf(t, c.code, c.trap, rounds)
			if err != nil {
				t.Logf("%s: %v", c.name, err)
				continue
			}
			took[c.name] = append(took[c.name], d)
		}
	}
	var ratios = map[string][]float64{}
	for name, list := range took {
		for i, d := range list {
			ratios[name] = append(ratios[name], float64(d)/float64(took[bare][i]))
		}
		slices.Sort(ratios[name])
	}
	for _, c := range costs {
		list, r := took[c.name], ratios[c.name]
		if len(list) == 0 {
			continue
		}
		slices.Sort(list)
		mid := list[len(list)/2]
		if c.name == bare {
			fmt.Printf("BENCH %s %.2f the bed's virtual time, median of %d\n", c.name, float64(mid)/1e3, len(list))
			continue
		}
		fmt.Printf("BENCH %s %.2f %.2f µs; lowest %.2fx, highest %.2fx\n", c.name, r[len(r)/2], float64(mid)/1e3, r[0], r[len(r)-1])
	}
}

// costOf returns what one round of a loop around code takes.
func costOf(t *testing.T, code string, trap hypervisor.Trap, rounds int) (time.Duration, error) {
	body := assemble(t, code)
	// mov r9d, 2; 1: mov ecx, rounds; out: the first time warms up
	loop := append([]byte{0x41, 0xb9, 2, 0, 0, 0, 0xb9, 0, 0, 0, 0, 0xe6, portStamp}, body...)
	binary.LittleEndian.PutUint32(loop[7:], uint32(rounds))
	n := byte(len(body))
	// dec ecx; jnz; out; dec r9d; jnz 1b; out; jmp $
	loop = append(loop, 0xff, 0xc9, 0x75, -(n + 4), 0xe6, portStamp, 0x41, 0xff, 0xc9, 0x75, -(n + 18), 0xe6, portEnd, 0xeb, 0xfe)
	var when stamps
	g := newGuest(t, 1, fmt.Sprintf("%x", loop), func(c *core.Config) {
		for port, h := range map[uint64]bus.Handler{portBare: nothing{}, portStamp: &when} {
			if err := c.Ports.Add(port, 1, h); err != nil {
				t.Fatal(err)
			}
		}
	})
	defer g.close()
	events := 0
	if trap.Kind != "" {
		_, err := g.e.SetTrap(t.Context(), trap, func(*hypervisor.TrapEvent) hypervisor.TrapAnswer {
			events++
			return hypervisor.TrapAnswer{}
		})
		if err != nil {
			return 0, err
		}
	}
	g.run(1)
	d := when.at[3].Sub(when.at[2]) / time.Duration(rounds)
	if beside := code == "48 89 43 20"; trap.Kind != "" && !beside && events != 2*rounds {
		t.Errorf("%s: %d events in twice %d rounds", code, events, rounds)
	}
	return d, nil
}
