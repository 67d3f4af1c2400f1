package qemu_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/qemu"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// nobodyEnv makes the test binary open a VM, its value, and tell what happens.
const nobodyEnv = "VANTAGE_TEST_AS_NOBODY"

func asNobody() int {
	target := os.Getenv(nobodyEnv)
	d := qemu.New(qemu.Options{})
	infos, err := d.List(context.Background())
	listed := slices.ContainsFunc(infos, func(i hypervisor.Info) bool { return fmt.Sprint(i.PID) == target })
	fmt.Printf("listed=%v err=%v\n", listed, err)
	_, err = d.Open(context.Background(), target)
	fmt.Printf("permission=%v %v\n", errors.Is(err, os.ErrPermission), err)
	return 0
}

// Without the right to look into another user's VM: it is listed, and opening
// it says what is missing.
func TestNoPermission(t *testing.T) {
	labtest.NeedRoot(t)
	m := start(t, true, "-m", "32", "-S")
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir := tempDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	bin := dir + "/test"
	if err := os.WriteFile(bin, exe, 0o755); err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	cmd := exec.Command(bin)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), nobodyEnv+"="+m.target())
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text := string(out)
	if !strings.Contains(text, "listed=true err=<nil>") {
		t.Errorf("List as nobody:\n%s", text)
	}
	if !strings.Contains(text, "permission=true") || !strings.Contains(text, "CAP_SYS_PTRACE") {
		t.Errorf("Open as nobody:\n%s", text)
	}
}
