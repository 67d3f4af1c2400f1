package linux

import (
	"encoding/json"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// BPFAttachment is a place that an eBPF program is attached to. What of it has
// a meaning depends on the kind of place; the rest is empty.
type BPFAttachment struct {
	// Type is the kind of attachment as bpftool prints it:
	// cgroup_inet_ingress, trace_fentry, xdp; empty where the kernel has none.
	Type string `json:"type"`
	// Cgroup is the path of a control group in its hierarchy.
	Cgroup string `json:"cgroup,omitempty"`
	// Function is the kernel's function, the LSM hook, the tracepoint or the
	// kernel probe's symbol that runs the program.
	Function string `json:"function,omitempty"`
	// Interface is a network interface, and Net the number of its network
	// namespace (of a netns link or netfilter hook: the namespace alone).
	Interface string `json:"interface,omitempty"`
	Net       uint32 `json:"net,omitempty"`
	// Path is the file that user-space probes are set in.
	Path string `json:"path,omitempty"`
	// Iterator is what an iterator walks: task, bpf_map.
	Iterator string `json:"iterator,omitempty"`
	// MapID is the map of a struct_ops or sockmap link.
	MapID uint32 `json:"map_id,omitempty"`
}

func (a BPFAttachment) clean() BPFAttachment {
	for _, s := range []*string{&a.Type, &a.Cgroup, &a.Function, &a.Interface, &a.Path, &a.Iterator} {
		*s = jsonText(*s)
	}
	return a
}

// BPFProgram is a loaded eBPF program.
type BPFProgram struct {
	ID   uint32 `json:"id"`
	Type string `json:"type"` // as bpftool prints it: socket_filter, kprobe, …
	Name string `json:"name"` // at most 15 bytes
	Tag  string `json:"tag"`  // of its instructions, in hexadecimal
	// LoadTime is when it was loaded (UTC); zero where that is not known.
	LoadTime time.Time `json:"load_time,omitzero"`
	UID      int       `json:"uid"` // of who loaded it; NoID where not known
	// JITAddress is where its compiled code begins, JITSize the bytes of all
	// its functions; both 0 when it is interpreted.
	JITAddress hypervisor.VirtAddr `json:"jit_address"`
	JITSize    uint64              `json:"jit_size"`
	// Instructions is the number of eBPF instructions after verification.
	Instructions uint32          `json:"instructions"`
	MapIDs       []uint32        `json:"map_ids"` // sorted
	Attachments  []BPFAttachment `json:"attachments"`
	Pinned       []string        `json:"pinned"` // paths in bpf file systems, sorted
	PIDs         []int           `json:"pids"`   // processes that hold a descriptor of it, sorted
	// KernelAddress is where the struct bpf_prog lies.
	KernelAddress hypervisor.VirtAddr `json:"kernel_address"`
}

// MarshalJSON writes p with its strings made valid: see the package comment.
func (p BPFProgram) MarshalJSON() ([]byte, error) {
	type plain BPFProgram
	q := plain(p)
	q.Type, q.Name, q.Attachments, q.Pinned = jsonText(p.Type), jsonText(p.Name), bpfClean(p.Attachments), jsonTexts(p.Pinned)
	return json.Marshal(struct {
		Kind string `json:"kind"`
		plain
	}{"program", q})
}

// BPFMap is an eBPF map.
type BPFMap struct {
	ID         uint32   `json:"id"`
	Type       string   `json:"type"` // as bpftool prints it: hash, array, …
	Name       string   `json:"name"`
	KeySize    uint32   `json:"key_size"`   // bytes
	ValueSize  uint32   `json:"value_size"` // bytes
	MaxEntries uint32   `json:"max_entries"`
	Flags      uint32   `json:"flags"` // BPF_F_*, include/uapi/linux/bpf.h
	Frozen     bool     `json:"frozen"`
	Pinned     []string `json:"pinned"` // paths in bpf file systems, sorted
	PIDs       []int    `json:"pids"`   // processes that hold a descriptor of it, sorted
	// KernelAddress is where the struct bpf_map lies.
	KernelAddress hypervisor.VirtAddr `json:"kernel_address"`
}

// MarshalJSON writes m with its strings made valid: see the package comment.
func (m BPFMap) MarshalJSON() ([]byte, error) {
	type plain BPFMap
	q := plain(m)
	q.Type, q.Name, q.Pinned = jsonText(m.Type), jsonText(m.Name), jsonTexts(m.Pinned)
	return json.Marshal(struct {
		Kind string `json:"kind"`
		plain
	}{"map", q})
}

// BPFLink is an eBPF link: an attachment that lives on its own.
type BPFLink struct {
	ID   uint32 `json:"id"`
	Type string `json:"type"` // as bpftool prints it: cgroup, tracing, …
	// ProgramID is the program's; 0 for a link of none (struct_ops).
	ProgramID  uint32        `json:"program_id"`
	Attachment BPFAttachment `json:"attachment"`
	Pinned     []string      `json:"pinned"` // paths in bpf file systems, sorted
	PIDs       []int         `json:"pids"`   // processes that hold a descriptor of it, sorted
	// KernelAddress is where the struct bpf_link lies.
	KernelAddress hypervisor.VirtAddr `json:"kernel_address"`
}

// MarshalJSON writes l with its strings made valid: see the package comment.
func (l BPFLink) MarshalJSON() ([]byte, error) {
	type plain BPFLink
	q := plain(l)
	q.Type, q.Attachment, q.Pinned = jsonText(l.Type), l.Attachment.clean(), jsonTexts(l.Pinned)
	return json.Marshal(struct {
		Kind string `json:"kind"`
		plain
	}{"link", q})
}

// BPFList is what BPF found, each sorted by id.
type BPFList struct {
	Programs []BPFProgram
	Maps     []BPFMap
	Links    []BPFLink // none before Linux 5.8
	// Coverage tells what could not be read or believed.
	Coverage *introspect.Coverage
}

func bpfClean(as []BPFAttachment) []BPFAttachment {
	out := make([]BPFAttachment, len(as))
	for i, a := range as {
		out[i] = a.clean()
	}
	return out
}

// jsonTexts returns ss as they go into JSON; never nil.
func jsonTexts(ss []string) []string {
	out := make([]string, len(ss))
	for i, s := range ss {
		out[i] = jsonText(s)
	}
	return out
}
