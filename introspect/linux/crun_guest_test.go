package linux

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// ociConfig is the configuration of a container (the OCI's runtime-spec) as an
// engine hands it to the runtime: a process in all kinds of namespaces, in the
// control group that the engine chose.
func ociConfig(t *testing.T, cgroup, hostname string) []byte {
	t.Helper()
	type object = map[string]any
	mount := func(kind, at string) object { return object{"destination": at, "type": kind, "source": kind} }
	var namespaces []object
	for _, n := range []string{"pid", "network", "ipc", "uts", "mount", "cgroup"} {
		namespaces = append(namespaces, object{"type": n})
	}
	b, err := json.Marshal(object{
		"ociVersion": "1.0.2",
		"hostname":   hostname,
		"root":       object{"path": "rootfs", "readonly": false},
		"process": object{
			"args": []string{"/bin/busybox", "sleep", "54321"}, "cwd": "/", "env": []string{"PATH=/bin"},
			"user": object{"uid": 33, "gid": 33},
		},
		"mounts": []object{mount("proc", "/proc"), mount("tmpfs", "/tmp")},
		"linux":  object{"cgroupsPath": cgroup, "namespaces": namespaces},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Containers that crun runs for Docker and for Kubernetes are known, and are
// what their own files say.
func TestRealContainers(t *testing.T) {
	const (
		dockerID = "4f6b9c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6f708192a3b4c5d6e7f"
		podID    = "0000111122223333444455556666777788889999aaaabbbbccccddddeeeeffff"
		uid      = "8dbc04f5-3bfc-4d9d-a2c2-5d4e8d6f0a11"
	)
	kernel := labtest.Kernel(t, lab.Trixie)
	files, err := lab.FetchProgram(t.Context(), lab.Bookworm, "crun", "crun", "libc6", "libcap2", "libseccomp2", "libsystemd0",
		"libyajl2", "libgcrypt20", "libgpg-error0", "liblz4-1", "liblzma5", "libzstd1")
	if err != nil {
		labtest.Missing(t, "crun: %v", err)
	}
	files = append(files,
		lab.File{Path: "c/docker/config.json", Data: ociConfig(t, "/docker/"+dockerID, "web")},
		lab.File{Path: "c/pod/config.json", Data: ociConfig(t, "/kubepods/burstable/pod"+uid+"/"+podID, "worker")})
	g := labtest.Boot(t, lab.Config{
		Name: "crun", Kernel: kernel, Memory: 384 * lab.MiB, Shared: true, KASLR: true, Files: files,
	})
	out, err := g.Run(t.Context(), fmt.Sprintf(`
		for c in docker pod; do
			mkdir -p /c/$c/rootfs/bin /c/$c/rootfs/proc /c/$c/rootfs/tmp /c/$c/rootfs/dev /c/$c/rootfs/sys
			cp /bin/busybox /c/$c/rootfs/bin
		done
		run() { /usr/bin/crun --cgroup-manager=cgroupfs run --no-pivot -d -b /c/$1 --pid-file /tmp/$1.pid $2 >/dev/null 2>/tmp/$1.err </dev/null || cat /tmp/$1.err; }
		run docker %s
		run pod %s
		for c in docker pod; do
			p=$(cat /tmp/$c.pid)
			echo $c $p $(cat /proc/$p/cgroup) $(for n in mnt pid net uts ipc cgroup; do readlink /proc/$p/ns/$n; done)
			readlink /proc/$p/exe
		done`, dockerID, podID))
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(strings.ReplaceAll(out, "\r", "")), "\n")
	if len(lines) != 4 {
		t.Fatalf("the guest said %s", out)
	}
	factsLook(t, g, func(guest *Guest) {
		l, err := guest.Processes(t.Context(), ProcessOptions{})
		if err != nil || !l.Coverage.Complete() {
			t.Fatal(err, l.Coverage.Problems())
		}
		for i, want := range []Container{{ID: dockerID, Runtime: RuntimeDocker}, {ID: podID, Pod: uid}} {
			said := strings.Fields(lines[2*i])
			j := slices.IndexFunc(l.Processes, func(p Process) bool { return fmt.Sprint(p.PID) == said[1] })
			if j < 0 {
				t.Fatalf("no process %s", said[1])
			}
			p := l.Processes[j]
			if got := (Container{ID: p.Container, Runtime: p.ContainerRuntime, Pod: p.Pod}); got != want {
				t.Errorf("%s: %+v, want %+v", p.Cgroup, got, want)
			}
			n := p.Namespaces
			got := fmt.Sprintf("%s %d 0::%s mnt:[%d] pid:[%d] net:[%d] uts:[%d] ipc:[%d] cgroup:[%d]", said[0], p.PID, p.Cgroup, n.Mnt, n.PID, n.Net, n.UTS, n.IPC, n.Cgroup)
			if got != strings.Join(said, " ") {
				t.Errorf("%s\nthe guest says\n%s", got, lines[2*i])
			}
			if p.Exe != lines[2*i+1] || p.UID != 33 || strings.Join(p.Args, " ") != "/bin/busybox sleep 54321" {
				t.Errorf("%+v, the guest says %s", p, lines[2*i+1])
			}
			ms, err := guest.ProcessMounts(t.Context(), p)
			if err != nil || !slices.ContainsFunc(ms.Mounts, func(m Mount) bool { return m.FSType == "proc" && strings.HasSuffix(m.Target, "/proc") }) {
				t.Errorf("%v: %+v", err, ms.Mounts)
			}
		}
	})
	if _, err := g.Run(t.Context(), "/usr/bin/crun delete -f "+dockerID+"; /usr/bin/crun delete -f "+podID); err != nil {
		t.Error(err)
	}
}
