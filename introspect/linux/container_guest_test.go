package linux

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Processes in the control groups of containers, made as their runtimes make
// them, in both versions of control groups and in namespaces of their own, are
// known as those containers'.
func TestContainersOfGuests(t *testing.T) {
	const (
		id  = "4f6b9c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6f708192a3b4c5d6e7f"
		uid = "8dbc04f5-3bfc-4d9d-a2c2-5d4e8d6f0a11"
	)
	pod := strings.ReplaceAll(uid, "-", "_")
	v2 := map[string]Container{
		"/system.slice/docker-" + id + ".scope": {ID: id, Runtime: RuntimeDocker},
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + pod + ".slice/cri-containerd-" + id + ".scope": {ID: id, Runtime: RuntimeContainerd, Pod: uid},
		"/kubepods.slice/kubepods-pod" + pod + ".slice/crio-" + id + ".scope/container":                                    {ID: id, Runtime: RuntimeCRIO, Pod: uid},
		"/machine.slice/libpod-" + id + ".scope/container":                                                                 {ID: id, Runtime: RuntimePodman},
		`/machine.slice/systemd-nspawn@my\x2dbox.service/payload`:                                                          {ID: "my-box", Runtime: RuntimeNspawn},
		"/lxc.payload.web01/init.scope":                                                                                    {ID: "web01", Runtime: RuntimeLXC},
		"/system.slice/ssh.service":                                                                                        {},
	}
	v1 := map[string]Container{
		"/docker/" + id: {ID: id, Runtime: RuntimeDocker},
		"/kubepods/besteffort/pod" + uid + "/" + id: {ID: id, Pod: uid},
		"/lxc/web02":                                   {ID: "web02", Runtime: RuntimeLXC},
		"/libpod_parent/libpod-" + id:                  {ID: id, Runtime: RuntimePodman},
		"/user.slice/user-1000.slice/session-c1.scope": {},
	}
	for _, kind := range guestKinds() {
		t.Run(kind.String(), func(t *testing.T) {
			g := bootFacts(t, kind)
			var script strings.Builder
			script.WriteString(`
				mkdir -p /tmp/v1 && mount -t cgroup -o none,name=systemd systemd /tmp/v1
				spawn() {
					mkdir -p "$1"
					unshare -m -u -i -n sh -c 'echo $$ > "$0/cgroup.procs"; exec sleep 100000' "$1" >/dev/null 2>&1 </dev/null &
				}
			`)
			for path := range v2 {
				fmt.Fprintf(&script, "spawn '/sys/fs/cgroup%s'\n", path)
			}
			for path := range v1 {
				fmt.Fprintf(&script, "spawn '/tmp/v1%s'\n", path)
			}
			fmt.Fprintf(&script, "until [ $(pidof sleep | wc -w) = %d ]; do usleep 50000; done", len(v1)+len(v2))
			if _, err := g.Run(t.Context(), script.String()); err != nil {
				t.Fatal(err)
			}
			found := map[string]bool{}
			factsLook(t, g, func(guest *Guest) {
				l, err := guest.Processes(t.Context(), ProcessOptions{})
				if err != nil || !l.Coverage.Complete() {
					t.Fatal(err, l.Coverage.Problems())
				}
				host := l.Processes[slices.IndexFunc(l.Processes, func(p Process) bool { return p.PID == 1 })].Namespaces
				for _, p := range l.Processes {
					if p.Comm != "sleep" {
						continue
					}
					want, ok := v2[p.Cgroup]
					if !ok {
						want, ok = v1[p.Cgroup]
					}
					if got := (Container{ID: p.Container, Runtime: p.ContainerRuntime, Pod: p.Pod, Name: want.Name}); !ok || got != want {
						t.Errorf("%s: %+v, want %+v", p.Cgroup, got, want)
					}
					if p.Namespaces.Net == host.Net || p.Namespaces.Mnt == host.Mnt || p.Namespaces.User != host.User {
						t.Errorf("%s: namespaces %+v", p.Cgroup, p.Namespaces)
					}
					found[p.Cgroup] = true
				}
			})
			if len(found) != len(v1)+len(v2) {
				t.Errorf("%d of %d control groups: %v", len(found), len(v1)+len(v2), found)
			}
			if _, err := g.Run(t.Context(), "kill $(pidof sleep); while pidof sleep >/dev/null; do usleep 50000; done; find /tmp/v1 /sys/fs/cgroup -mindepth 1 -depth -type d -exec rmdir {} \\; ; umount /tmp/v1; true"); err != nil {
				t.Error(err)
			}
		})
	}
}
