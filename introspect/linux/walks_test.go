package linux

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

func TestVMAs(t *testing.T) {
	f := newFake(t, 2)
	p := listProcesses(t, f, ProcessOptions{}).Processes[0]
	vmas, cov, err := f.guest.VMAs(t.Context(), p)
	if err != nil || !cov.Complete() {
		t.Fatal(err, cov.Problems())
	}
	got, _ := json.Marshal(vmas)
	const want = `[{"start":"0x400000","end":"0x402000","perms":"r-xp","offset":0,"path":"/usr/bin-1","anon":false},` +
		`{"start":"0x7ffd00000000","end":"0x7ffd00021000","perms":"rw-p","offset":0,"path":"[stack]","anon":true}]`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	as, err := f.guest.ProcessSpace(p)
	if err != nil {
		t.Fatal(err)
	}
	var b [4]byte
	if n, err := as.ReadVirt(b[:], fakeUser); n != 4 || string(b[:]) != "prog" {
		t.Errorf("process memory: %q, %v", b[:n], err)
	}
	f.set(f.processes[0].task, "task_struct.pid", 99)
	if _, _, err := f.guest.VMAs(t.Context(), p); !errors.Is(err, ErrGone) {
		t.Errorf("VMAs of a process that has gone: %v", err)
	}
	p.mm = 0
	if _, err := f.guest.ProcessSpace(p); !errors.Is(err, ErrNoMemory) {
		t.Errorf("space of a process without memory: %v", err)
	}
}

func TestVMAsOfALiar(t *testing.T) {
	for name, lie := range map[string]func(f *fake, leaf hypervisor.VirtAddr){
		"self":       func(f *fake, leaf hypervisor.VirtAddr) { f.put64(leaf+8, 5); f.put64(leaf+128, uint64(leaf)|3<<3|6) },
		"pivot":      func(f *fake, leaf hypervisor.VirtAddr) { f.put64(leaf+16, 1) },
		"wild entry": func(f *fake, leaf hypervisor.VirtAddr) { f.put64(leaf+136, 0x1238) },
		"other mm": func(f *fake, leaf hypervisor.VirtAddr) {
			f.set(hypervisor.VirtAddr(f.u64(leaf+136)), "vm_area_struct.vm_mm", 8)
		},
		"moved": func(f *fake, leaf hypervisor.VirtAddr) {
			f.set(hypervisor.VirtAddr(f.u64(leaf+136)), "vm_area_struct.vm_start", 0x1000)
		},
		"type": func(f *fake, _ hypervisor.VirtAddr) {
			root := f.member(f.processes[0].mm, "mm_struct.mm_mt.ma_root")
			f.put64(root, f.u64(root)|15<<3)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, 1)
			lie(f, hypervisor.VirtAddr(f.u64(f.member(f.processes[0].mm, "mm_struct.mm_mt.ma_root")))&^255)
			_, cov, err := f.guest.VMAs(t.Context(), listProcesses(t, f, ProcessOptions{}).Processes[0])
			if err != nil {
				t.Fatal(err)
			}
			if name == "self" { // a leaf that points to itself has an entry that is no mapping
				return
			}
			if cov.Complete() {
				t.Error("the coverage tells nothing")
			}
		})
	}
}

func TestModules(t *testing.T) {
	names := func(ms []Module, keep func(Module) bool) string {
		var out []string
		for _, m := range ms {
			if keep(m) {
				out = append(out, m.Name)
			}
		}
		return strings.Join(out, " ")
	}
	all := func(Module) bool { return true }
	hidden := func(m Module) bool { return m.Hidden }
	f := newFake(t, 1)
	l, err := f.guest.Modules(t.Context())
	if err != nil || !l.Coverage.Complete() {
		t.Fatal(err, l.Coverage.Problems())
	}
	got, _ := json.Marshal(l.Modules[0])
	want := fmt.Sprintf(`{"name":"alpha","base":"0xffffffffc0000000","size":3072,"state":"Live","kernel_address":"%v","hidden":false,"seen_in":["modules","module_tree","sysfs"]}`, l.Modules[0].KernelAddress)
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	beta := l.Modules[1].KernelAddress
	f.unlink(f.member(beta, "module.list"))
	l, err = f.guest.Modules(t.Context())
	if err != nil || names(l.Modules, all) != "alpha beta" || names(l.Modules, hidden) != "beta" {
		t.Errorf("unlinked: %+v, %v", l.Modules, err)
	}
	if !slices.Equal(l.Modules[1].SeenIn, []View{ViewModuleTree, ViewSysfs}) {
		t.Errorf("seen in %v", l.Modules[1].SeenIn)
	}
	f.put64(f.modList, 0x4141_4141_4141_4141)
	f.put64(f.kset, uint64(f.kset)+0x1000)
	root := f.member(f.modTree, "mod_tree_root.root.tree")
	node := hypervisor.VirtAddr(f.u64(root))
	f.put64(node+16, uint64(node))
	l, err = f.guest.Modules(t.Context())
	if err != nil || l.Coverage.Complete() {
		t.Errorf("broken: %+v, %v", l.Coverage.Problems(), err)
	}
}

func TestPathBounds(t *testing.T) {
	f := newFake(t, 1)
	p := newPaths(&f.guest.r, &f.guest.lay.fs)
	vfs := f.member(f.mnt, "mount.mnt")
	path := func(d hypervisor.VirtAddr) (string, error) {
		return newPaths(&f.guest.r, &f.guest.lay.fs).of(filePath{vfs, d})
	}
	if got, err := p.of(filePath{vfs, f.rootDentry}); got != "/" || err != nil {
		t.Errorf("root: %q, %v", got, err)
	}
	a, b := f.object("dentry"), f.object("dentry")
	f.dentry(a, b, "a")
	f.dentry(b, f.rootDentry, "b\xff")
	if got, err := path(a); got != "/b\xff/a" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	f.set(a, "dentry.d_hash.pprev", 0)
	if got, err := path(a); got != "/b\xff/a (deleted)" || err != nil {
		t.Errorf("deleted: %q, %v", got, err)
	}
	f.set(a, "dentry.d_parent", uint64(a))
	if got, err := path(a); got != "/a (deleted)" || err != nil {
		t.Errorf("memfd: %q, %v", got, err)
	}
	// b and a are each other's parents.
	f.set(a, "dentry.d_parent", uint64(b))
	f.set(b, "dentry.d_parent", uint64(a))
	if got, err := path(a); !errors.Is(err, ErrLimit) {
		t.Errorf("cycle: %q, %v", got, err)
	}
	f.set(b, "dentry.d_name.len", 1<<30)
	if got, err := path(a); !errors.Is(err, ErrTorn) {
		t.Errorf("huge name: %q, %v", got, err)
	}
	// A mount on top of a name in the first one, then mounts that form a ring.
	m, top := f.object("mount"), f.object("dentry")
	f.dentry(b, f.rootDentry, "mnt")
	f.dentry(top, top, "/")
	f.dentry(a, top, "a")
	f.set(m, "mount.mnt.mnt_root", uint64(top))
	f.set(m, "mount.mnt_parent", uint64(f.mnt))
	f.set(m, "mount.mnt_mountpoint", uint64(b))
	vfs = f.member(m, "mount.mnt")
	if got, err := path(a); got != "/mnt/a" || err != nil {
		t.Errorf("mounted: %q, %v", got, err)
	}
	f.set(m, "mount.mnt_mountpoint", uint64(f.rootDentry))
	f.set(f.mnt, "mount.mnt_parent", uint64(m))
	f.set(f.mnt, "mount.mnt_mountpoint", uint64(top))
	if got, err := path(a); !errors.Is(err, ErrLimit) {
		t.Errorf("ring of mounts: %q, %v", got, err)
	}
}

func TestContainerID(t *testing.T) {
	const id = "4f6b9c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6f708192a3b4c5d6e7f"
	id2 := "a" + id[1:]
	for path, want := range map[string]string{
		"":            "",
		"/":           "",
		"/init.scope": "",
		"/user.slice/user-1000.slice/session-2.scope": "",
		"/system.slice/docker.service":                "",
		"/system.slice/docker-proxy.service":          "",
		"/docker/" + id:                               id,
		"/system.slice/docker-" + id + ".scope":       id,
		"/docker/" + id + "/docker/" + id2:            id2,
		"/docker/" + id + "/system.slice/x.service":   id,
		"/kubepods/besteffort/pod9f1c/" + id:          id,
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-" + id + ".scope": id,
		"/kubepods.slice/kubepods-pod1.slice/crio-" + id + ".scope":                                                id,
		"/kubepods.slice/kubepods-pod1.slice/crio-" + id + ".scope/container":                                      id,
		"/kubepods.slice/kubepods-pod1.slice/crio-conmon-" + id + ".scope":                                         "",
		"/machine.slice/libpod-" + id + ".scope/container":                                                         id,
		"/machine.slice/libpod-conmon-" + id + ".scope":                                                            "",
		"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id + ".scope":                         id,
		"/system.slice/nerdctl-" + id + ".scope":                                                                   id,
		"/default/" + id:                                                                                           id,
		"/ecs/0123456789abcdef0123456789abcdef/0123456789abcdef0123456789abcdef-1234567890":                        "0123456789abcdef0123456789abcdef-1234567890",
		"/default/redis-server":                                                                                    "redis-server",
		"/other/redis-server":                                                                                      "",
		"/lxc/web01":                                                                                               "web01",
		"/lxc.payload/web01":                                                                                       "web01",
		"/lxc.payload.web01/system.slice/ssh.service":                                                              "web01",
		"/lxc.monitor.web01":                                                                                       "",
		"/machine.slice/systemd-nspawn@deb.service/payload":                                                        "deb",
		"/machine.slice/machine-my\\x2dbox.scope":                                                                  "my-box",
		"/machine.slice/machine-qemu\\x2d1\\x2dvm.scope":                                                           "",
		"/system.slice/docker-not-an-id.scope":                                                                     "",
	} {
		if got := ContainerID(path); got != want {
			t.Errorf("ContainerID(%q) = %q, want %q", path, got, want)
		}
	}
}

func TestJSONText(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "plain": "plain", "ünï": "ünï", "a\xffb\xc3": `a\xffb\xc3`, "\x1b[31m": "\x1b[31m", "�": "�", "é\x80": `é\x80`,
	} {
		if got := jsonText(in); got != want {
			t.Errorf("jsonText(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestTaskLetters(t *testing.T) {
	for _, tt := range []struct {
		state uint64
		exit  uint32
		want  string
	}{{0, 0, "R"}, {1, 0, "S"}, {2, 0, "D"}, {0x402, 0, "I"}, {4, 0, "T"}, {8, 0, "t"}, {0x80, 0x20, "Z"}, {0x80, 0x10, "X"}, {0x40, 0, "P"}, {0x8000, 0, "D"}, {0xffff_ffff_ffff_ffff, 0, "I"}} {
		task := task{state: tt.state, exitState: tt.exit}
		if got := task.letter(); got != tt.want {
			t.Errorf("state %#x, %#x: %s, want %s", tt.state, tt.exit, got, tt.want)
		}
	}
}
