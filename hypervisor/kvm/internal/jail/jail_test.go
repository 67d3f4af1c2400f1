package jail

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestMain(m *testing.M) {
	if err := Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	if Inside() {
		prisoner()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// report is what a prisoner says: how each attempt ended.
type report struct {
	Before map[string]string `json:"before"` // Seal
	After  map[string]string `json:"after"`
}

const allowed = "allowed"

func say(err error) string {
	if err == nil {
		return allowed
	}
	var e syscall.Errno
	if errors.As(err, &e) {
		return unix.ErrnoName(e)
	}
	return err.Error()
}

// prisoner tries what a guest that has broken out would.
func prisoner() {
	r := report{Before: map[string]string{}, After: map[string]string{}}
	open := func(path string, flags int) error {
		fd, err := unix.Open(path, flags, 0o600)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	r.Before["passwd"] = say(open("/etc/passwd", unix.O_RDONLY))
	r.Before["proc"] = say(open("/proc/self/status", unix.O_RDONLY))
	r.Before["kvm"] = say(open("/dev/kvm", unix.O_RDWR))
	r.Before["create"] = say(open("/file", unix.O_CREAT|unix.O_RDWR))
	r.Before["write program"] = say(open(programPath, unix.O_RDWR))
	r.Before["setuid"] = say(unix.Setuid(0))
	r.Before["mount"] = say(unix.Mount("none", "/", "tmpfs", 0, ""))
	ifs, err := net.Interfaces()
	names := []string{fmt.Sprint(len(ifs))}
	for _, i := range ifs {
		names = append(names, i.Name+" "+i.Flags.String())
	}
	r.Before["interfaces"] = fmt.Sprint(names, err)
	r.Before["pid"] = fmt.Sprint(os.Getpid(), os.Getppid())

	in := bufio.NewReader(os.Stdin)
	if err := Seal(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(4)
	}
	call := func(nr, a, b, c uintptr) string {
		_, _, e := unix.RawSyscall6(nr, a, b, c, 0, 0, 0)
		if e == 0 {
			return allowed
		}
		return unix.ErrnoName(e)
	}
	const anonymous = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, anonymous)
	r.After["map memory"] = say(err)
	_, err = unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, anonymous)
	r.After["map code"] = say(err)
	if page != nil {
		r.After["make code"] = say(unix.Mprotect(page, unix.PROT_READ|unix.PROT_EXEC))
	}
	r.After["open"] = say(open(programPath, unix.O_RDONLY))
	r.After["exec"] = say(unix.Exec(programPath, []string{"x"}, nil))
	for name, domain := range map[string]int{"inet": unix.AF_INET, "unix": unix.AF_UNIX, "netlink": unix.AF_NETLINK, "packet": unix.AF_PACKET, "vsock": unix.AF_VSOCK} {
		_, err := unix.Socket(domain, unix.SOCK_DGRAM, 0)
		r.After["socket "+name] = say(err)
	}
	r.After["fork"] = call(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
	r.After["vfork"] = call(unix.SYS_VFORK, 0, 0, 0)
	r.After["clone3"] = call(unix.SYS_CLONE3, 0, 0, 0)
	r.After["unshare"] = call(unix.SYS_UNSHARE, unix.CLONE_NEWUSER, 0, 0)
	r.After["kill"] = call(unix.SYS_KILL, 1, 0, 0)
	r.After["ptrace"] = call(unix.SYS_PTRACE, unix.PTRACE_TRACEME, 0, 0)
	r.After["process_vm_readv"] = call(unix.SYS_PROCESS_VM_READV, 1, 0, 0)
	r.After["bpf"] = call(unix.SYS_BPF, 0, 0, 0)
	r.After["keyctl"] = call(unix.SYS_KEYCTL, 0, 0, 0)
	r.After["userfaultfd"] = call(unix.SYS_USERFAULTFD, 0, 0, 0)
	r.After["io_uring"] = call(unix.SYS_IO_URING_SETUP, 1, 0, 0)
	r.After["perf"] = call(unix.SYS_PERF_EVENT_OPEN, 0, 0, 0)
	r.After["memfd"] = call(unix.SYS_MEMFD_CREATE, uintptr(unsafe.Pointer(&[]byte("x\x00")[0])), 0, 0)
	r.After["seccomp"] = call(unix.SYS_SECCOMP, 0, 0, 0)
	r.After["dumpable again"] = call(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1, 0)
	none := ^uintptr(0) // no descriptor: what passes the filter ends in EBADF
	r.After["ioctl create vm"] = call(unix.SYS_IOCTL, none, 0xae01, 0)
	r.After["ioctl terminal"] = call(unix.SYS_IOCTL, none, unix.TIOCSTI, 0)
	r.After["ioctl run"] = call(unix.SYS_IOCTL, none, 0xae80, 0)
	// The program itself goes on: threads, memory, files that are open.
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			runtime.LockOSThread() // its thread ends with it
			_ = make([]byte, 1<<20)
		})
	}
	wg.Wait()
	b, err := json.Marshal(r)
	if err != nil {
		os.Exit(5)
	}
	fmt.Println(string(b))
	what, _ := in.ReadString('\n') // while the test looks at us from outside
	if what == "x32\n" {
		_, _, _ = unix.RawSyscall(0x4000_0000+unix.SYS_GETPID, 0, 0, 0) // which does not return
	}
}

// prison is a prisoner that has reported and waits.
type prison struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	report
}

func newPrison(t *testing.T, name string) *prison {
	t.Helper()
	p := &prison{cmd: exec.CommandContext(t.Context(), "/proc/self/exe", "prisoner")}
	p.cmd.Stderr = os.Stderr
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := Prepare(p.cmd, name); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(Explain(err))
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatalf("the prisoner says nothing: %v", err)
	}
	if err := json.Unmarshal(line, &p.report); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPrisoner(t *testing.T) {
	labtest.NeedRoot(t)
	p := newPrison(t, "web")
	for name, want := range map[string][]string{
		"passwd": {"ENOENT", "EACCES"}, "proc": {"ENOENT", "EACCES"}, "kvm": {"ENOENT", "EACCES"},
		"create": {"EROFS", "EACCES"}, "write program": {"EROFS", "EACCES", "ETXTBSY"},
		"setuid": {"EPERM"}, "mount": {"EPERM"},
		"interfaces": {"[1 lo loopback] <nil>"}, "pid": {"1 0"},
	} {
		if got := p.Before[name]; !slices.Contains(want, got) {
			t.Errorf("before it is sealed: %s: %s", name, got)
		}
	}
	passes := map[string]string{"map memory": allowed, "ioctl run": "EBADF", "clone3": "ENOSYS"}
	for name, got := range p.After {
		want, ok := passes[name]
		if !ok {
			want = "EPERM"
		}
		if got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if len(p.After) < 25 {
		t.Errorf("only %d attempts", len(p.After))
	}
	status := readStatus(t, p.cmd.Process.Pid)
	uid := fmt.Sprint(UID("web"))
	for field, want := range map[string]string{
		"Uid": strings.Join([]string{uid, uid, uid, uid}, "\t"), "Gid": strings.Join([]string{uid, uid, uid, uid}, "\t"), "Groups": "",
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapBnd": "0000000000000000", "CapAmb": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2",
	} {
		if got := status[field]; got != want {
			t.Errorf("%s is %q, want %q", field, got, want)
		}
	}
	for _, ns := range []string{"mnt", "pid", "ipc", "uts", "net", "cgroup"} {
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.cmd.Process.Pid, ns))
		if err != nil {
			t.Fatal(err)
		}
		if ours, _ := os.Readlink("/proc/self/ns/" + ns); theirs == ours {
			t.Errorf("the %s namespace is ours", ns)
		}
	}
	root := fmt.Sprintf("/proc/%d/root", p.cmd.Process.Pid)
	err := filepath.WalkDir(root+"/", func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := strings.TrimPrefix(path, root); !d.IsDir() && name != programPath && !strings.Contains(filepath.Base(name), ".so") {
			t.Errorf("%s is in the jail", name)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func readStatus(t *testing.T, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	return fields
}

// A system call of another architecture ends the process.
func TestOtherArchitecture(t *testing.T) {
	labtest.NeedRoot(t)
	p := newPrison(t, "x")
	if _, err := io.WriteString(p.in, "x32\n"); err != nil {
		t.Fatal(err)
	}
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !exit.Sys().(syscall.WaitStatus).Signaled() || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGSYS {
		t.Errorf("it ended with %v", err)
	}
}

// Without a sandbox nothing happens.
func TestOutside(t *testing.T) {
	if Inside() {
		t.Error("this test is in a jail")
	}
	if err := Enter(); err != nil {
		t.Error(err)
	}
}
