package linux

import (
	"slices"
	"strings"
)

// Names of a container's own control group, before its id. A systemd unit is
// named prefix, id and ".scope"; a plain directory has no suffix.
var containerPrefixes = [...]string{
	"docker-",         // Docker with systemd
	"cri-containerd-", // Kubernetes on containerd
	"crio-",           // Kubernetes on CRI-O
	"libpod-",         // Podman
	"nerdctl-",        // containerd
	"containerd-",
	"lxc.payload.", // LXC, LXD, Incus
}

// containerdNamespaces are containerd's own, Docker's and Kubernetes' names for
// where their containers are. Others cannot be told from a group of the host.
var containerdNamespaces = [...]string{"default", "moby", "k8s.io"}

// Names that follow one of containerPrefixes when the group is that of the
// runtime's monitor, which is no part of the container.
const monitorMark = "conmon-"

// ContainerID returns the id of the container that a process in the control
// group path runs in, the innermost one when they are nested: what Docker,
// containerd, CRI-O, Podman, LXC or systemd-nspawn call it. It is empty for a
// process of the host.
func ContainerID(path string) string {
	parts := strings.Split(path, "/")
	if len(parts) == 3 && slices.Contains(containerdNamespaces[:], parts[1]) {
		return parts[2] // containerd without systemd: /NAMESPACE/ID
	}
	for i := len(parts) - 1; i >= 0; i-- {
		parent := ""
		if i > 0 {
			parent = parts[i-1]
		}
		if id := containerOf(parent, parts[i]); id != "" {
			return id
		}
	}
	return ""
}

func containerOf(parent, name string) string {
	unit, isScope := strings.CutSuffix(name, ".scope")
	for _, p := range containerPrefixes {
		id, ok := strings.CutPrefix(unit, p)
		if !ok || strings.HasPrefix(id, monitorMark) {
			continue
		}
		if p == "lxc.payload." {
			return id
		}
		if isHexID(id) {
			return id
		}
	}
	switch {
	case isLongID(name): // /docker/ID, /kubepods/…/podUID/ID, /ecs/TASK/ID
		return name
	case parent == "lxc", parent == "lxc.payload":
		return name
	case isScope && parent == "machine.slice":
		// Registered with systemd-machined by nspawn or libvirt. A virtual
		// machine is none of the host's containers.
		if id, ok := strings.CutPrefix(unit, "machine-"); ok {
			if id = systemdUnescape(id); !strings.HasPrefix(id, "qemu-") {
				return id
			}
		}
	case strings.HasPrefix(name, "systemd-nspawn@"):
		id, _ := strings.CutSuffix(strings.TrimPrefix(name, "systemd-nspawn@"), ".service")
		return systemdUnescape(id)
	}
	return ""
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
