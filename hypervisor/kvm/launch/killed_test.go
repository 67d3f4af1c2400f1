package launch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm"
)

// envClient makes this program a client that sets traps until it is killed: it
// holds the machine's name and the traps.
const envClient = "VANTAGE_TEST_CLIENT"

type clientSpec struct {
	Name  string            `json:"name"`
	Traps []hypervisor.Trap `json:"traps"`
}

// client sets its traps and removes them, over and over, and lets the guest go on
// at each event.
func client(text string) error {
	var s clientSpec
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return err
	}
	ctx := context.Background()
	vm, err := kvm.New(kvm.Options{Timeout: time.Minute}).Open(ctx, s.Name)
	if err != nil {
		return err
	}
	tr, err := hypervisor.As[hypervisor.Trapper](vm)
	if err != nil {
		return err
	}
	fmt.Println("open")
	told := make(chan struct{}, 1)
	for {
		var ids []hypervisor.TrapID
		for _, t := range s.Traps {
			id, err := tr.SetTrap(ctx, t, func(*hypervisor.TrapEvent) hypervisor.TrapAnswer {
				select {
				case told <- struct{}{}:
				default:
				}
				return hypervisor.TrapAnswer{}
			})
			if err != nil {
				return err
			}
			ids = append(ids, id)
		}
		for range 3 {
			<-told
		}
		fmt.Println("told")
		for _, id := range ids {
			if err := tr.RemoveTrap(ctx, id); err != nil {
				return err
			}
		}
	}
}

// watched is a guest whose clients die.
type watched struct {
	name  string
	vm    *kvm.VM
	traps []hypervisor.Trap
	text  hypervisor.Range // must stay as it is
	alive func(t *testing.T)
}

// killClients lets clients die at random moments, rounds times: the guest's text is
// byte for byte what it was, and the guest runs on.
func killClients(t *testing.T, w watched, rounds int) {
	ctx := t.Context()
	w.alive(t)
	before, now := make([]byte, w.text.Size), make([]byte, w.text.Size)
	if err := hypervisor.ReadFull(w.vm, before, w.text.Start); err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	told, most := 0, 120*time.Millisecond
	for round := range rounds {
		s := clientSpec{Name: w.name}
		for range 1 + random.IntN(3) {
			s.Traps = append(s.Traps, w.traps[random.IntN(len(w.traps))])
		}
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(ctx, "/proc/self/exe")
		cmd.Env = append(os.Environ(), envClient+"="+string(b))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var errs bytes.Buffer
		cmd.Stderr = &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// From when it has connected on it is killed at any moment of its work.
		var text bytes.Buffer
		opened := make(chan struct{})
		go func() {
			first := make([]byte, 5)
			_, _ = io.ReadFull(out, first)
			close(opened)
			_, _ = io.Copy(&text, out)
		}()
		select {
		case <-opened:
		case <-time.After(time.Minute):
			t.Fatalf("round %d: the client does not connect: %s", round, errs.String())
		}
		start := time.Now()
		for end := start.Add(time.Duration(random.Int64N(int64(most)))); time.Now().Before(end); {
		}
		_ = cmd.Process.Kill()
		if err := cmd.Wait(); errs.Len() > 0 {
			t.Fatalf("round %d: %v: %s", round, err, errs.String())
		}
		told += strings.Count(text.String(), "told")
		// The machine notices by itself. This handle reads what is in memory, INT3
		// included.
		until(t, fmt.Sprintf("round %d: %+v are removed", round, s.Traps), time.Minute, func() bool {
			err := hypervisor.ReadFull(w.vm, now, w.text.Start)
			if err != nil {
				t.Fatal(err)
			}
			return bytes.Equal(now, before)
		})
		w.alive(t)
	}
	t.Logf("%d clients were killed; they were told of events %d times", rounds, told)
	if told == 0 {
		t.Error("no client was ever told of anything")
	}
}

// testKilledTiny kills clients of the tiny guest, whose every instruction they may
// trap.
func testKilledTiny(t *testing.T, rounds int) {
	g := newTiny(t, "killed")
	traps := []hypervisor.Trap{
		{Kind: hypervisor.TrapPage, Access: hypervisor.AccessRead, Addr: tinyMailbox, Size: 8},
		{Kind: hypervisor.TrapHardware, Access: hypervisor.AccessExecute, Virt: tinyLoop + 2, VCPU: hypervisor.AllVCPUs},
		{Kind: hypervisor.TrapPage, Access: hypervisor.AccessExecute, Addr: tinyLoop, Size: 8},
		{Kind: hypervisor.TrapStep, VCPU: 0},
	}
	// Of these the EPT bed does only what steps no instruction that leaves the guest:
	// see lab.EPT.
	for _, off := range []hypervisor.PhysAddr{0, 2, 5} {
		traps = append(traps, hypervisor.Trap{Kind: hypervisor.TrapBreakpoint, Addr: tinyLoop + off})
	}
	if id, err := g.vm.SetTrap(t.Context(), traps[4], func(*hypervisor.TrapEvent) hypervisor.TrapAnswer { return hypervisor.TrapAnswer{} }); err == nil {
		if err := g.vm.RemoveTrap(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		traps = append(traps[1:2], traps[4:]...)
	} else if errors.Is(err, hypervisor.ErrNotSupported) {
		traps = traps[:4]
	} else {
		t.Fatal(err)
	}
	n := byte(0)
	killClients(t, watched{
		name: g.name, vm: g.vm, traps: traps, text: hypervisor.Range{Start: tinyBase, Size: 0x1000},
		alive: func(t *testing.T) {
			n++
			p := []byte{n, 1, 2, 3, 4, 5, 6, 7}
			if err := g.write(p, 0x20_0000); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 8)
			if err := g.truth(b, 0x20_0000); err != nil || !bytes.Equal(b, p) {
				t.Fatalf("the guest has stored %x, not %x: %v", b, p, err)
			}
		},
	}, rounds)
}
