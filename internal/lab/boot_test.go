package lab_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestBootAndRun(t *testing.T) {
	ctx := t.Context()
	g := labtest.Boot(t, lab.Config{
		Name:   "boot",
		Kernel: labtest.Kernel(t, lab.Bookworm),
		Shared: true,
		QMP:    true,
		KASLR:  true,
		Init:   "echo hello from init",
	})
	if !strings.Contains(g.Console(), "hello from init") {
		t.Error("Config.Init did not run")
	}
	out, err := g.Run(ctx, "uname -r; hostname")
	if err != nil {
		t.Fatal(err)
	}
	if want := g.Config().Kernel.Release + "\nboot\n"; out != want {
		t.Errorf("Run printed %q, want %q", out, want)
	}
	if _, err := g.Run(ctx, "false"); err == nil {
		t.Error("Run: no error for status 1")
	}

	if err := g.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if s, err := g.Status(ctx); err != nil || s != "paused" {
		t.Errorf("Status = %q, %v, want paused", s, err)
	}
	if err := g.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	layout, err := g.Layout(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("layout %+v", layout)

	ram, err := g.RAMFile()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(ram)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := os.Stat(g.QMPSocket()); err != nil {
		t.Error(err)
	}
}

func TestBootFailureShowsConsole(t *testing.T) {
	_, err := lab.Boot(t.Context(), lab.Config{
		Kernel:  labtest.Kernel(t, lab.Bookworm),
		RawInit: "#!/bin/sh\necho last words of the guest\n",
	})
	var ge *lab.GuestError
	if !errors.As(err, &ge) {
		t.Fatalf("error %v (%T), want a *GuestError", err, err)
	}
	// The end of PID 1 is a panic, and that ends QEMU.
	if !strings.Contains(err.Error(), "last words of the guest") || !strings.Contains(err.Error(), "Kernel panic") {
		t.Errorf("the error does not show the console:\n%v", err)
	}
}

func TestBootRejects(t *testing.T) {
	for name, c := range map[string]lab.Config{
		"no kernel": {},
		"odd size":  {Kernel: &lab.Kernel{}, Memory: 1000},
		"bad name":  {Kernel: &lab.Kernel{}, Name: "a,b"},
		"two kinds": {Kernel: &lab.Kernel{}, Shared: true, RAMPath: "/dev/shm/x"},
	} {
		if g, err := lab.Boot(context.Background(), c); err == nil {
			t.Errorf("%s: no error", name)
			if err := g.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
