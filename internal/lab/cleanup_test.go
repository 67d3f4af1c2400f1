package lab_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestNothingRemainsAfterKill(t *testing.T) {
	parent, qemu, files := orphan(t, "")
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	awaitGone(t, append(files, fmt.Sprintf("/proc/%d", qemu))...)
}

func TestDetachedGuestOutlivesParent(t *testing.T) {
	parent, qemu, files := orphan(t, "detach:")
	proc, err := os.FindProcess(qemu)
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Kill() //nolint:errcheck // gone already when the test passed
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	conn, err := net.Dial("unix", files[0])
	if err != nil {
		t.Fatalf("the guest's QMP socket: %v", err)
	}
	if n, err := conn.Read(make([]byte, 100)); n == 0 {
		t.Errorf("QEMU does not answer: %v", err)
	}
	conn.Close()
	if err := proc.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitGone(t, append(files, fmt.Sprintf("/proc/%d", qemu))...)
}

func TestNothingRemainsAfterClose(t *testing.T) {
	path := fmt.Sprintf("/dev/shm/vantage-lab-close-%d", os.Getpid())
	for _, keep := range []bool{false, true} {
		g, err := lab.Boot(t.Context(), lab.Config{
			Kernel: labtest.Kernel(t, lab.Bookworm), Memory: 128 * lab.MiB,
			RAMPath: path, KeepRAMPath: keep, QMP: true, Ready: "-",
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path); (err == nil) != keep {
			t.Errorf("KeepRAMPath=%v: memory's file: %v", keep, err)
		}
		if _, err := g.RAMFile(); err != nil {
			t.Error(err)
		}
		dir, pid := filepath.Dir(g.QMPSocket()), g.PID()
		for range 2 {
			if err := g.Close(); err != nil {
				t.Error(err)
			}
		}
		for _, p := range []string{path, dir, fmt.Sprintf("/proc/%d", pid)} {
			if _, err := os.Lstat(p); !os.IsNotExist(err) {
				t.Errorf("KeepRAMPath=%v: %s is still there (%v)", keep, p, err)
			}
		}
	}
}
