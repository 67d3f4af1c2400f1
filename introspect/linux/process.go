package linux

import (
	"encoding/json"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// View is one of the kernel's own records of what exists.
type View string

// Views of processes and modules.
const (
	ViewTasks      View = "tasks"       // the list that starts at init_task
	ViewPIDIndex   View = "pid_index"   // the first PID namespace's idr
	ViewThreads    View = "threads"     // a process's list of threads, or a thread of the process
	ViewCgroup     View = "cgroup"      // the lists of tasks of its control groups
	ViewRunQueue   View = "run_queue"   // a CPU's queue of tasks that run or wait to run
	ViewModuleList View = "modules"     // the list behind /proc/modules
	ViewModuleTree View = "module_tree" // the tree that finds a module by address
	ViewSysfs      View = "sysfs"       // the directory /sys/module
	ViewCode       View = "code"        // what is executable among modules
)

// NoID is a user or group id that could not be read. The kernel never gives it
// out (include/linux/uidgid.h: INVALID_UID).
const NoID = -1

// Namespaces are the inode numbers of a task's namespaces, as in the links
// /proc/PID/ns/*. 0 means that the task has none (any more), or that the kernel
// has no such kind.
type Namespaces struct {
	Mnt    uint32 `json:"mnt"`
	PID    uint32 `json:"pid"`
	Net    uint32 `json:"net"`
	UTS    uint32 `json:"uts"`
	IPC    uint32 `json:"ipc"`
	User   uint32 `json:"user"`
	Cgroup uint32 `json:"cgroup"`
	Time   uint32 `json:"time"`
}

// Process is a process of the guest, or one thread of it.
type Process struct {
	PID  int `json:"pid"` // as seen from the first PID namespace; of a thread, its own
	PPID int `json:"ppid"`
	TGID int `json:"tgid"`
	// Real and effective ids as the first user namespace numbers them; NoID
	// where they could not be read.
	UID  int    `json:"uid"`
	GID  int    `json:"gid"`
	EUID int    `json:"euid"`
	EGID int    `json:"egid"`
	Comm string `json:"comm"`
	// Exe is the path of the program, up to the root of its mount namespace,
	// with " (deleted)" behind it as the kernel writes it. Empty for a kernel
	// thread, a zombie, and what could not be read.
	Exe       string    `json:"exe"`
	Args      []string  `json:"args"`
	StartTime time.Time `json:"start_time,omitzero"` // UTC; zero where not known
	State     string    `json:"state"`               // the letter that ps prints
	Kernel    bool      `json:"kernel"`              // a kernel thread
	// Cgroup is the path in the unified hierarchy or, on a host of version 1,
	// in the one named "systemd", else in the first in which it is not the root.
	Cgroup    string `json:"cgroup"`
	Container string `json:"container"` // the container's id: see ContainerOf
	// ContainerRuntime and Pod are those of its container: see ContainerOf.
	ContainerRuntime string     `json:"container_runtime"`
	Pod              string     `json:"pod"`
	Namespaces       Namespaces `json:"namespaces"`
	// KernelAddress is where the task_struct lies.
	KernelAddress hypervisor.VirtAddr `json:"kernel_address"`
	// Hidden: it is missing from a view that should have it and that could be
	// walked to its end. SeenIn names the views that have it.
	Hidden bool   `json:"hidden"`
	SeenIn []View `json:"seen_in"`

	mm hypervisor.VirtAddr // 0: none
}

// HasMemory reports whether the process had user memory when it was listed:
// kernel threads and zombies have none.
func (p Process) HasMemory() bool { return p.mm != 0 }

// MarshalJSON writes p with its strings made valid: see the package comment.
func (p Process) MarshalJSON() ([]byte, error) {
	type plain Process // without this method
	q := plain(p)
	for _, s := range []*string{&q.Comm, &q.Exe, &q.Cgroup, &q.Container, &q.ContainerRuntime, &q.Pod} {
		*s = jsonText(*s)
	}
	q.Args = make([]string, len(p.Args))
	for i, a := range p.Args {
		q.Args[i] = jsonText(a)
	}
	return json.Marshal(q)
}

// ProcessOptions say what Processes lists.
type ProcessOptions struct {
	// Threads lists every thread, the first one of each process (whose PID is
	// its TGID) among them.
	Threads bool
}

// ProcessList is what Processes found, sorted by PID, then by TGID and kernel
// address.
type ProcessList struct {
	Processes []Process
	// Coverage tells what could not be read or believed.
	Coverage *introspect.Coverage
}
