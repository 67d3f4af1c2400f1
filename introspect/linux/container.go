package linux

import "strings"

// Container is what the path of a control group tells of the container that its
// processes run in. The zero value is that of a process of the host.
type Container struct {
	// ID is what its runtime calls it; empty for what is in a pod but in none of
	// its containers.
	ID string
	// Runtime is one of the constants; empty where the path does not tell.
	Runtime string
	// Pod is the UID of its Kubernetes pod, with dashes, or the id of its Podman
	// pod.
	Pod string
	// Name is the container's name where runtimes name its group by that.
	Name string
}

// Runtimes of containers.
const (
	RuntimeDocker      = "docker"
	RuntimeContainerd  = "containerd" // nerdctl, ctr and Kubernetes on containerd
	RuntimeCRIO        = "cri-o"
	RuntimePodman      = "podman"
	RuntimeLXC         = "lxc" // LXC, LXD, Incus, Proxmox
	RuntimeNspawn      = "systemd-nspawn"
	RuntimeLibvirtLXC  = "libvirt-lxc"
	RuntimeRunc        = "runc" // by itself
	RuntimeCrun        = "crun"
	libvirtLXCPrefix   = "lxc-"
	libvirtQEMUPrefix  = "qemu-"
	containerScopeMark = ".scope"
)

// containerPrefixes are what the names of a container's own control group begin
// with, before its id. A systemd unit is named prefix, id and ".scope"; a plain
// directory has no suffix.
var containerPrefixes = [...]struct {
	prefix, runtime string
	named           bool // what follows may be any name
}{
	{"docker-", RuntimeDocker, false},
	{"cri-containerd-", RuntimeContainerd, false}, // Kubernetes on containerd
	{"crio-", RuntimeCRIO, false},
	{"libpod-payload-", RuntimePodman, false}, // of podman run --cgroups=split
	{"libpod-", RuntimePodman, false},
	{"nerdctl-", RuntimeContainerd, false},
	{"containerd-", RuntimeContainerd, false},
	{"lxc.payload.", RuntimeLXC, true},
}

// containerdNamespaces are containerd's own, Docker's and Kubernetes' names for
// where their containers are. Others cannot be told from a group of the host.
var containerdNamespaces = map[string]string{
	"default": RuntimeContainerd, "moby": RuntimeDocker, "k8s.io": RuntimeContainerd,
}

// longIDParents are the runtimes whose groups of containers are named by nothing
// but a long id, by the name of the directory above.
var longIDParents = map[string]string{
	"docker": RuntimeDocker, "moby": RuntimeDocker, "k8s.io": RuntimeContainerd, "default": RuntimeContainerd,
	"libpod_parent": RuntimePodman,
}

// Names that follow one of containerPrefixes when the group is that of the
// runtime's monitor, which is no part of the container.
const monitorMark = "conmon-"

// ContainerID returns the id of the container that a process in the control
// group path runs in: see ContainerOf. It is empty for a process of the host.
func ContainerID(path string) string { return ContainerOf(path).ID }

// ContainerOf returns the container that a process in the control group path runs
// in, the innermost one when they are nested. It knows what Docker, containerd,
// CRI-O, Podman, LXC, systemd-nspawn, runc, crun and Kubernetes call their groups,
// made by themselves or by systemd, in both versions of control groups.
func ContainerOf(path string) Container {
	parts := strings.Split(path, "/")
	if len(parts) == 3 && parts[2] != "" {
		if runtime, ok := containerdNamespaces[parts[1]]; ok { // containerd without systemd: /NAMESPACE/ID
			return Container{ID: parts[2], Runtime: runtime}
		}
	}
	var c Container
	for i := len(parts) - 1; i >= 0; i-- {
		parent, child := "", ""
		if i > 0 {
			parent = parts[i-1]
		}
		if i+1 < len(parts) {
			child = parts[i+1]
		}
		if pod := podOf(parts[i]); pod != "" && c.Pod == "" {
			c.Pod = pod
			if c.ID != "" {
				return c
			}
		}
		if c.ID != "" || c.Pod != "" {
			continue // of a container: only its pod may be above it
		}
		c = containerIn(parent, parts[i], child)
	}
	return c
}

// containerIn returns the container whose group is called name; it has no id
// when name is none's. parent and child are the directories around it.
func containerIn(parent, name, child string) Container {
	// containerd under systemd with the wrong driver: SLICE:cri-containerd:ID.
	if slice, rest, ok := strings.Cut(name, ":"); ok && strings.HasSuffix(slice, ".slice") {
		if prefix, id, ok := strings.Cut(rest, ":"); ok && isHexID(id) {
			c := containerIn("", prefix+"-"+id+containerScopeMark, "")
			c.Pod = podOf(slice)
			return c
		}
	}
	unit, isScope := strings.CutSuffix(name, containerScopeMark)
	for _, p := range containerPrefixes {
		id, ok := strings.CutPrefix(unit, p.prefix)
		switch {
		case !ok || strings.HasPrefix(id, monitorMark) || id == "":
		case p.named:
			return Container{ID: id, Runtime: p.runtime, Name: id}
		case isHexID(id):
			return Container{ID: id, Runtime: p.runtime}
		}
	}
	switch {
	case isLongID(name): // /docker/ID, /kubepods/…/podUID/ID, /ecs/TASK/ID
		return Container{ID: name, Runtime: longIDParents[parent]}
	case name == "":
	case parent == "lxc", parent == "lxc.payload":
		return Container{ID: name, Runtime: RuntimeLXC, Name: name}
	case isScope && strings.HasPrefix(unit, RuntimeRunc+"-"):
		id := systemdUnescape(strings.TrimPrefix(unit, RuntimeRunc+"-"))
		return Container{ID: id, Runtime: RuntimeRunc, Name: id}
	case isScope && strings.HasPrefix(unit, RuntimeCrun+"-"):
		id := systemdUnescape(strings.TrimPrefix(unit, RuntimeCrun+"-"))
		return Container{ID: id, Runtime: RuntimeCrun, Name: id}
	case isScope && parent == "machine.slice":
		return machineOf(unit, child)
	case strings.HasPrefix(name, "systemd-nspawn@") && child != "supervisor": // that is nspawn itself
		id, _ := strings.CutSuffix(strings.TrimPrefix(name, "systemd-nspawn@"), ".service")
		id = systemdUnescape(id)
		return Container{ID: id, Runtime: RuntimeNspawn, Name: id}
	}
	return Container{}
}

// machineOf returns the container that is registered with systemd-machined under
// this unit, by nspawn or libvirt. A virtual machine is none of the host's
// containers.
func machineOf(unit, child string) Container {
	id, ok := strings.CutPrefix(unit, "machine-")
	if !ok {
		return Container{}
	}
	id = systemdUnescape(id)
	switch {
	case id == "", strings.HasPrefix(id, libvirtQEMUPrefix), child == "supervisor":
		return Container{}
	case strings.HasPrefix(id, libvirtLXCPrefix):
		// lxc-NUMBER-NAME
		_, name, _ := strings.Cut(strings.TrimPrefix(id, libvirtLXCPrefix), "-")
		return Container{ID: id, Runtime: RuntimeLibvirtLXC, Name: name}
	}
	return Container{ID: id, Runtime: RuntimeNspawn, Name: id}
}

// podOf returns the pod whose group is called name: podUID, a slice whose name
// ends in -podUID with dashes written as underscores (kubelet), or one of Podman's,
// libpod_pod_ID.
func podOf(name string) string {
	unit, isSlice := strings.CutSuffix(name, ".slice")
	if _, id, ok := strings.Cut(unit, "libpod_pod_"); ok && isHexID(id) {
		return id
	}
	if !isSlice {
		if uid, ok := strings.CutPrefix(name, "pod"); ok && isPodUID(uid) {
			return uid
		}
		return ""
	}
	i := strings.LastIndex(unit, "-pod")
	if i < 0 || !strings.Contains(unit[:i+1], "kubepods-") {
		return ""
	}
	if uid := strings.ReplaceAll(unit[i+len("-pod"):], "_", "-"); isPodUID(uid) {
		return uid
	}
	return ""
}

// isPodUID reports whether s is a pod's UID: a UUID or, of a pod that kubelet was
// given in a file, the 32 digits of its hash.
func isPodUID(s string) bool {
	if len(s) == 32 {
		return isHex(s)
	}
	groups := strings.Split(s, "-")
	if len(groups) != 5 {
		return false
	}
	for i, n := range [...]int{8, 4, 4, 4, 12} {
		if len(groups[i]) != n || !isHex(groups[i]) {
			return false
		}
	}
	return true
}

// isLongID reports whether s is an id by its form alone: 64 hexadecimal digits,
// or Fargate's 32 with a decimal number behind.
func isLongID(s string) bool {
	if task, number, ok := strings.Cut(s, "-"); ok {
		return len(task) == 32 && isHex(task) && number != "" && strings.Trim(number, "0123456789") == ""
	}
	return len(s) == 64 && isHex(s)
}

// isHexID reports whether s is an id where a prefix says that one follows.
func isHexID(s string) bool { return len(s) >= 12 && len(s) <= 64 && isHex(s) }

func isHex(s string) bool { return strings.Trim(s, "0123456789abcdef") == "" }

// systemdUnescape undoes the \xNN of unit names (systemd-escape(1)).
func systemdUnescape(s string) string {
	if !strings.Contains(s, `\x`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if i+4 <= len(s) && s[i] == '\\' && s[i+1] == 'x' && isHex(s[i+2:i+4]) {
			b.WriteByte(unhex(s[i+2])<<4 | unhex(s[i+3]))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func unhex(c byte) byte {
	if c >= 'a' {
		return c - 'a' + 10
	}
	return c - '0'
}
