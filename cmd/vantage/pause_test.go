package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/introspect/linux"
)

// standingMain is a command that looks at the guest that its argument names,
// under --pause, until it is told to end: in the test binary, as "standing".
func standingMain() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, logLevel: "warn", json: true, pause: true}
	err := a.withGuest(ctx, os.Args[1], func(*linux.Guest) error {
		fmt.Println("standing")
		switch os.Args[2] {
		case "panic":
			panic("as asked for")
		case "crash": // no deferred function runs
			go func() { panic("as asked for") }()
		}
		<-ctx.Done()
		return ctx.Err()
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func wantStatus(t *testing.T, g *lab.Guest, want string) {
	t.Helper()
	var got string
	var err error
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 400 {
		if got, err = g.Status(t.Context()); err == nil && got == want {
			return
		}
		<-tick.C
	}
	t.Fatalf("the guest is %s (%v), want %s", got, err, want)
}

func TestPause(t *testing.T) {
	g := infected(t, lab.PC, true, true)
	for _, command := range []string{"ps", "modules", "info"} {
		r := vantage(t, command, g.Name(), "--pause", "--json")
		if r.status != exitOK || r.stdout == "" && command != "modules" {
			t.Fatalf("%s: status %d: %s", command, r.status, r.stderr)
		}
		said := objects(t, r.stderr)
		if len(said) != 1 || said[0]["vm"] != g.Name() || said[0]["paused_seconds"].(float64) <= 0 || said[0]["paused_seconds"].(float64) > 60 {
			t.Errorf("%s: %s", command, r.stderr)
		}
		if s, err := g.Status(t.Context()); s != "running" || err != nil {
			t.Fatalf("%s: the guest is %s afterwards, %v", command, s, err)
		}
	}
	if r := vantage(t, "ps", g.Name(), "--pause"); r.status != exitOK || !strings.Contains(r.stderr, g.Name()+" stood still for ") {
		t.Errorf("status %d: %s", r.status, r.stderr)
	}
	// It was paused before, and somebody wants it so.
	if err := g.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := vantage(t, "ps", g.Name(), "--pause", "--json")
	if s, err := g.Status(t.Context()); s != "paused" || err != nil {
		t.Errorf("a guest that was paused before is %s, %v", s, err)
	}
	if err := g.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if said := objects(t, r.stderr); r.status != exitOK || len(said) != 1 || said[0]["paused_seconds"] != 0.0 {
		t.Errorf("paused before: status %d: %s", r.status, r.stderr)
	}
	// A memory file needs no pause.
	file, err := g.RAMFile()
	if err != nil {
		t.Fatal(err)
	}
	r = vantage(t, "ps", "image:"+file, "--pause", "--json")
	if said := objects(t, r.stderr); len(said) == 0 || said[len(said)-1]["paused_seconds"] != 0.0 || r.status == exitFailed {
		t.Errorf("memory file: status %d: %s", r.status, r.stderr)
	}
}

// Without a monitor there is no pause, and the error says how to get one.
func TestPauseNotPossible(t *testing.T) {
	g := infected(t, lab.Q35, false, false)
	r := vantage(t, "ps", g.Name(), "--pause")
	if r.status != exitFailed || r.stdout != "" || !strings.Contains(r.stderr, "-qmp") {
		t.Errorf("status %d: %s%s", r.status, r.stdout, r.stderr)
	}
}

// However a look ends, the guest runs afterwards.
func TestPauseThatIsBroken(t *testing.T) {
	g := infected(t, lab.PC, true, true)
	for _, c := range []struct {
		how    string
		signal os.Signal
	}{
		{"wait", os.Interrupt}, {"wait", os.Kill}, {"wait", syscall.SIGHUP}, {"panic", nil}, {"crash", nil},
	} {
		t.Run(fmt.Sprint(c.how, " ", c.signal), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, "standing", g.Name(), c.how)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			var errs strings.Builder
			cmd.Stderr = &errs
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if line != "standing\n" {
				t.Fatalf("%q, %v, %v: %s", line, err, cmd.Wait(), errs.String())
			}
			if c.signal != nil {
				if s, err := g.Status(ctx); s != "paused" || err != nil {
					t.Errorf("during the look the guest is %s, %v", s, err)
				}
				if err := cmd.Process.Signal(c.signal); err != nil {
					t.Fatal(err)
				}
			}
			if err := cmd.Wait(); err == nil {
				t.Error("it ended as if nothing had been")
			}
			wantStatus(t, g, "running")
			if c.signal == os.Interrupt && !strings.Contains(errs.String(), `"paused_seconds":`) {
				t.Errorf("stderr: %s", errs.String())
			}
		})
	}
}
