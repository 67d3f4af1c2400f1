package lab_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// envChild makes this test binary boot a guest, say so, and wait: for tests of
// what happens to a guest whose parent is killed. Its value is a kernel's image;
// with "detach:" before it the guest is a detached one.
const envChild = "VANTAGE_LAB_TEST_CHILD"

func TestMain(m *testing.M) {
	if v := os.Getenv(envChild); v != "" {
		child(v)
	}
	labtest.Main(m)
}

func child(image string) {
	image, detach := strings.CutPrefix(image, "detach:")
	g, err := lab.Boot(context.Background(), lab.Config{
		Name:        "orphan",
		Kernel:      &lab.Kernel{Image: image},
		Memory:      128 * lab.MiB,
		RAMPath:     fmt.Sprintf("/dev/shm/vantage-lab-test-%d", os.Getpid()),
		KeepRAMPath: true,
		QMP:         true,
		Detach:      detach,
	})
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println(g.PID(), g.QMPSocket(), g.Config().RAMPath)
	<-g.Done() // until someone kills it or us
	os.Exit(0)
}

// orphan starts the child above and returns its process, QEMU's PID, and the
// files that the guest has.
func orphan(t *testing.T, detach string) (*exec.Cmd, int, []string) {
	t.Helper()
	k := labtest.Kernel(t, lab.Bookworm)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envChild+"="+detach+k.Image)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(line)
	if len(f) != 3 {
		t.Fatalf("the child said %q", line)
	}
	pid, err := strconv.Atoi(f[0])
	if err != nil {
		t.Fatal(err)
	}
	files := []string{f[1], f[2], filepath.Dir(f[1])}
	for _, p := range append(files, fmt.Sprintf("/proc/%d", pid)) {
		if _, err := os.Lstat(p); err != nil {
			t.Fatal(err)
		}
	}
	return cmd, pid, files
}

// awaitGone waits until none of the paths is there.
func awaitGone(t *testing.T, paths ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for _, p := range paths {
		for {
			if _, err := os.Lstat(p); os.IsNotExist(err) {
				break
			}
			select {
			case <-ctx.Done():
				t.Errorf("%s is still there", p)
				return
			case <-tick.C:
			}
		}
	}
}
