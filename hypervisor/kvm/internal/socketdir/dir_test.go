package socketdir

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// holdEnv makes the test binary a machine: it claims a name, says so, and waits.
const holdEnv = "VANTAGE_SOCKETDIR_HOLD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(holdEnv); dir != "" {
		if _, err := Dir(dir).Claim("held"); err != nil {
			_, _ = os.Stdout.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		_, _ = os.Stdout.WriteString("held\n")
		_, _ = os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	}
	labtest.Main(m)
}

func dir(t *testing.T) Dir { return Dir(filepath.Join(t.TempDir(), "vantage", "vms")) }

func TestClaim(t *testing.T) {
	d := dir(t)
	c, err := d.Claim("web-1")
	if err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{
		string(d):                              os.ModeDir | 0o700,
		d.Socket("web-1"):                      os.ModeSocket | 0o600,
		filepath.Join(string(d), "web-1.lock"): 0o600,
	} {
		if st, err := os.Lstat(path); err != nil || st.Mode() != mode {
			t.Errorf("%s: %v, %v; want %v", path, st.Mode(), err, mode)
		}
	}
	if _, err := d.Claim("web-1"); !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "vantage stop web-1") {
		t.Errorf("a name was taken twice: %v", err)
	}
	other, err := d.Claim("web-2")
	if err != nil {
		t.Fatal(err)
	}
	if names, err := d.Names(); err != nil || !slices.Equal(names, []string{"web-1", "web-2"}) {
		t.Errorf("names %v, %v", names, err)
	}
	if err := d.Check("web-1"); err != nil {
		t.Error(err)
	}
	if dead, err := d.Sweep("web-1"); dead || err != nil {
		t.Errorf("a machine that lives was swept: %v, %v", dead, err)
	}
	// It serves once someone listens.
	if _, err := net.Dial("unixpacket", c.Path()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connected to a socket on which no one listens: %v", err)
	}
	if err := unix.Listen(int(c.Socket().Fd()), 4); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unixpacket", c.Path())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	c.Release()
	c.Release()
	other.Release()
	if es, err := os.ReadDir(string(d)); err != nil || len(es) != 0 {
		t.Errorf("left behind: %v, %v", es, err)
	}
	c, err = d.Claim("web-1")
	if err != nil {
		t.Fatal(err)
	}
	c.Release()
}

func TestNames(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "../x", ".hidden", "-x", "a b", "a\n", strings.Repeat("a", 65), "ü"} {
		if c, err := dir(t).Claim(name); err == nil {
			t.Errorf("name %q was taken", name)
			c.Release()
		}
	}
	if names, err := Dir("/nowhere/at/all").Names(); names != nil || err != nil {
		t.Errorf("%v, %v", names, err)
	}
	d, name, err := Split("/run/vantage/vms/web-1.sock")
	if d != "/run/vantage/vms" || name != "web-1" || err != nil {
		t.Errorf("%v %v %v", d, name, err)
	}
	for _, path := range []string{"/run/x", "/run/.sock", "/run/-x.sock"} {
		if _, _, err := Split(path); err == nil {
			t.Errorf("%s was split", path)
		}
	}
}

// A machine that is killed gives its name back, and what it left is swept.
func TestKilledMachine(t *testing.T) {
	d := dir(t)
	for _, sweep := range []bool{true, false} {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
		cmd.Env = append(os.Environ(), holdEnv+"="+string(d))
		if _, err := cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 100)
		n, _ := out.Read(line)
		if string(line[:n]) != "held\n" {
			t.Fatalf("%s", line[:n])
		}
		if dead, err := d.Sweep("held"); dead || err != nil {
			t.Errorf("a machine that lives was swept: %v, %v", dead, err)
		}
		if _, err := d.Claim("held"); !errors.Is(err, ErrTaken) {
			t.Errorf("Claim = %v", err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if _, err := os.Lstat(d.Socket("held")); err != nil {
			t.Errorf("a killed process removed its socket? %v", err)
		}
		if sweep {
			if dead, err := d.Sweep("held"); !dead || err != nil {
				t.Errorf("Sweep = %v, %v", dead, err)
			}
			if es, err := os.ReadDir(string(d)); err != nil || len(es) != 0 {
				t.Errorf("left behind: %v, %v", es, err)
			}
			continue
		}
		c, err := d.Claim("held")
		if err != nil {
			t.Fatal(err)
		}
		c.Release()
	}
}

// Many at once: one has the name.
func TestClaimRaces(t *testing.T) {
	d := dir(t)
	for range 50 {
		var wg sync.WaitGroup
		var mu sync.Mutex
		has := 0
		for range 8 {
			wg.Go(func() {
				c, err := d.Claim("one")
				if errors.Is(err, ErrTaken) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				has++
				if has != 1 {
					t.Error("two have the name")
				}
				if _, err := os.Lstat(c.Path()); err != nil {
					t.Error(err)
				}
				has--
				mu.Unlock()
				c.Release()
			})
			wg.Go(func() {
				if _, err := d.Sweep("one"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
}

func TestCheckRefuses(t *testing.T) {
	labtest.NeedRoot(t)
	d := dir(t)
	c, err := d.Claim("x")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Release()
	for _, step := range []struct {
		name string
		do   func() error
		ok   bool
	}{
		{"a folder that others can write", func() error { return os.Chmod(string(d), 0o770) }, false},
		{"as it was", func() error { return os.Chmod(string(d), 0o700) }, true},
		{"another's socket in it", func() error { return os.Lchown(c.Path(), 4242, 0) }, false},
		{"another's folder and socket", func() error { return os.Lchown(string(d), 4242, 0) }, true}, // we are root
		{"a socket that is none", func() error {
			if err := os.Remove(c.Path()); err != nil {
				return err
			}
			return os.Symlink("/run/elsewhere.sock", c.Path())
		}, false},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if err := d.Check("x"); (err == nil) != step.ok {
			t.Errorf("%s: %v", step.name, err)
		}
	}
	if _, err := d.Claim("y"); err == nil {
		t.Error("a name was taken in another's folder")
	}
}

func TestDefault(t *testing.T) {
	d, err := Default()
	if err != nil {
		t.Skip(err)
	}
	want := "/run/vantage/vms"
	if uid := os.Geteuid(); uid != 0 {
		want = filepath.Join("/run/user", strconv.Itoa(uid), "vantage/vms")
		if x := os.Getenv("XDG_RUNTIME_DIR"); x != "" {
			want = filepath.Join(x, "vantage/vms")
		}
	}
	if string(d) != want {
		t.Errorf("Default = %s, want %s", d, want)
	}
}
