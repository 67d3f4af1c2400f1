package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// scenario makes what belongs to eBPF.
type scenario struct {
	truth *truth
	keep  []any // what must stay open
	maps  []*ebpf.Map
	want  map[uint32]map[string]any // by program: where it was attached
	pins  map[string][]string       // by kind and id
}

const bpffs = "/sys/fs/bpf"

func (s *scenario) makeMaps() error {
	if err := syscall.Mount("bpf", bpffs, "bpf", 0, ""); err != nil {
		return fmt.Errorf("mount bpf: %w", err)
	}
	inner := &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 3}
	for _, spec := range []*ebpf.MapSpec{
		{Name: "vt_hash", Type: ebpf.Hash, KeySize: 8, ValueSize: 24, MaxEntries: 100},
		{Name: "vt_array", Type: ebpf.Array, KeySize: 4, ValueSize: 40, MaxEntries: 7},
		{Name: "vt_percpu", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: 5},
		{Name: "vt_lru", Type: ebpf.LRUHash, KeySize: 4, ValueSize: 16, MaxEntries: 64},
		{Name: "vt_lpm", Type: ebpf.LPMTrie, KeySize: 8, ValueSize: 4, MaxEntries: 11, Flags: 1},
		{Name: "vt_ring", Type: ebpf.RingBuf, MaxEntries: 4096},
		{Name: "vt_queue", Type: ebpf.Queue, ValueSize: 12, MaxEntries: 9},
		{Name: "vt_outer", Type: ebpf.HashOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 2, InnerMap: inner},
		{Name: "vt_cgstore", Type: ebpf.CGroupStorage, KeySize: 16, ValueSize: 8},
	} {
		m, err := ebpf.NewMap(spec)
		if err != nil {
			return fmt.Errorf("map %s: %w", spec.Name, err)
		}
		s.maps = append(s.maps, m)
	}
	if err := s.maps[1].Freeze(); err != nil {
		return err
	}
	return s.maps[0].Pin(bpffs + "/vt_hash_pin")
}

// ret0 are instructions that refer to the first two maps and return v.
func (s *scenario) ret(v int32) asm.Instructions {
	return asm.Instructions{
		asm.LoadMapPtr(asm.R1, s.maps[0].FD()),
		asm.LoadMapPtr(asm.R1, s.maps[1].FD()),
		asm.Mov.Imm(asm.R0, v),
		asm.Return(),
	}
}

func (s *scenario) load(spec ebpf.ProgramSpec) (*ebpf.Program, uint32, error) {
	spec.License = "GPL"
	if spec.Instructions == nil {
		spec.Instructions = s.ret(1)
	}
	p, err := ebpf.NewProgram(&spec)
	if err != nil {
		return nil, 0, fmt.Errorf("program %s: %w", spec.Name, err)
	}
	s.keep = append(s.keep, p)
	info, err := p.Info()
	if err != nil {
		return nil, 0, err
	}
	id, _ := info.ID()
	return p, uint32(id), nil
}

// step is a program and how it is attached. What attach returns is kept; want
// is what must be said of the place.
type step struct {
	spec   ebpf.ProgramSpec
	may    bool // some kernels cannot
	attach func(*ebpf.Program) (any, error)
	want   map[string]any
}

func (s *scenario) makePrograms() error {
	probed()
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return err
	}
	self, err := link.OpenExecutable("/proc/self/exe")
	if err != nil {
		return err
	}
	const cgroup = "/sys/fs/cgroup/vt_bpf"
	if err := os.MkdirAll(cgroup+"/inner", 0o755); err != nil {
		return err
	}
	inner, err := os.Open(cgroup + "/inner")
	if err != nil {
		return err
	}
	netns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	s.keep = append(s.keep, inner, netns)
	steps := []step{
		{spec: ebpf.ProgramSpec{Name: "vt_sock", Type: ebpf.SocketFilter}, attach: func(p *ebpf.Program) (any, error) {
			fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0)
			if err == nil {
				err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, 50 /* SO_ATTACH_BPF */, p.FD())
			}
			return fd, err
		}},
		{spec: ebpf.ProgramSpec{Name: "vt_calls", Type: ebpf.SocketFilter, Instructions: asm.Instructions{
			asm.Call.Label("sub").WithSymbol("main"), asm.Return(),
			asm.Mov.Imm(asm.R0, 7).WithSymbol("sub"), asm.Return(),
		}}},
		{spec: ebpf.ProgramSpec{Name: "vt_cglink", Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetIngress}, attach: func(p *ebpf.Program) (any, error) {
			return link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: ebpf.AttachCGroupInetIngress, Program: p})
		}, want: map[string]any{"type": "cgroup_inet_ingress", "cgroup": "/vt_bpf"}},
		{spec: ebpf.ProgramSpec{Name: "vt_cgold", Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetEgress}, attach: func(p *ebpf.Program) (any, error) {
			return nil, link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(inner.Fd()), Program: p, Attach: ebpf.AttachCGroupInetEgress})
		}, want: map[string]any{"type": "cgroup_inet_egress", "cgroup": "/vt_bpf/inner"}},
		{spec: ebpf.ProgramSpec{Name: "vt_cgdev", Type: ebpf.CGroupDevice, AttachType: ebpf.AttachCGroupDevice}, attach: func(p *ebpf.Program) (any, error) {
			return nil, link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(inner.Fd()), Program: p, Attach: ebpf.AttachCGroupDevice})
		}, want: map[string]any{"type": "cgroup_device", "cgroup": "/vt_bpf/inner"}},
		{spec: ebpf.ProgramSpec{Name: "vt_xdp", Type: ebpf.XDP, Instructions: s.ret(2)}, attach: func(p *ebpf.Program) (any, error) {
			return link.AttachXDP(link.XDPOptions{Program: p, Interface: lo.Index, Flags: link.XDPGenericMode})
		}, want: map[string]any{"type": "xdp", "interface": "lo"}},
		{spec: ebpf.ProgramSpec{Name: "vt_xdpold", Type: ebpf.XDP, Instructions: s.ret(2)}, attach: func(p *ebpf.Program) (any, error) {
			return nil, attachXDP("dummy0", p.FD())
		}, want: map[string]any{"type": "xdp", "interface": "dummy0"}},
		{spec: ebpf.ProgramSpec{Name: "vt_rawtp", Type: ebpf.RawTracepoint}, attach: func(p *ebpf.Program) (any, error) {
			return link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sched_process_exit", Program: p})
		}, want: map[string]any{"function": "sched_process_exit"}},
		{spec: ebpf.ProgramSpec{Name: "vt_fentry", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceFEntry, AttachTo: "bpf_fentry_test1", Instructions: s.ret(0)}, attach: func(p *ebpf.Program) (any, error) {
			return link.AttachTracing(link.TracingOptions{Program: p})
		}, want: map[string]any{"type": "trace_fentry", "function": "bpf_fentry_test1"}},
		{spec: ebpf.ProgramSpec{Name: "vt_iter", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceIter, AttachTo: "task", Instructions: s.ret(0)}, attach: func(p *ebpf.Program) (any, error) {
			return link.AttachIter(link.IterOptions{Program: p})
		}, want: map[string]any{"iterator": "task"}},
		{spec: ebpf.ProgramSpec{Name: "vt_lookup", Type: ebpf.SkLookup, AttachType: ebpf.AttachSkLookup}, attach: func(p *ebpf.Program) (any, error) {
			return link.AttachNetNs(int(netns.Fd()), p)
		}, want: map[string]any{"type": "sk_lookup"}},
		{spec: ebpf.ProgramSpec{Name: "vt_kprobe", Type: ebpf.Kprobe}, attach: func(p *ebpf.Program) (any, error) {
			return link.Kprobe("do_exit", p, nil)
		}, want: map[string]any{"type": "perf_event", "function": "do_exit"}},
		{spec: ebpf.ProgramSpec{Name: "vt_tracepoint", Type: ebpf.TracePoint}, attach: func(p *ebpf.Program) (any, error) {
			return link.Tracepoint("sched", "sched_process_fork", p, nil)
		}, want: map[string]any{"function": "sched_process_fork"}},
		{spec: ebpf.ProgramSpec{Name: "vt_uprobe", Type: ebpf.Kprobe}, attach: func(p *ebpf.Program) (any, error) {
			return self.Uprobe("main.probed", p, nil)
		}, want: map[string]any{"path": "/proc/self/exe"}},
		{spec: ebpf.ProgramSpec{Name: "vt_kmulti", Type: ebpf.Kprobe, AttachType: ebpf.AttachTraceKprobeMulti}, may: true, attach: func(p *ebpf.Program) (any, error) {
			return link.KprobeMulti(p, link.KprobeMultiOptions{Symbols: []string{"ksys_sync"}})
		}, want: map[string]any{"function": "ksys_sync"}},
		{spec: ebpf.ProgramSpec{Name: "vt_umulti", Type: ebpf.Kprobe, AttachType: ebpf.AttachTraceUprobeMulti}, may: true, attach: func(p *ebpf.Program) (any, error) {
			return self.UprobeMulti([]string{"main.probed"}, p, nil)
		}, want: map[string]any{"path": "/hooks"}},
		{spec: ebpf.ProgramSpec{Name: "vt_tcx", Type: ebpf.SchedCLS, AttachType: ebpf.AttachTCXEgress}, may: true, attach: func(p *ebpf.Program) (any, error) {
			return link.AttachTCX(link.TCXOptions{Interface: lo.Index, Program: p, Attach: ebpf.AttachTCXEgress})
		}, want: map[string]any{"interface": "lo"}},
		{spec: ebpf.ProgramSpec{Name: "vt_nf", Type: ebpf.Netfilter, AttachType: ebpf.AttachNetfilter}, may: true, attach: func(p *ebpf.Program) (any, error) {
			return link.AttachNetfilter(link.NetfilterOptions{Program: p, ProtocolFamily: link.NetfilterProtoIPv4, Hook: link.NetfilterInetForward, Priority: -77})
		}, want: map[string]any{"function": "ip forward"}},
	}
	for i, st := range steps {
		p, id, err := s.load(st.spec)
		var kept any
		if err == nil && st.attach != nil {
			kept, err = st.attach(p)
		}
		if err != nil {
			if !st.may {
				return fmt.Errorf("%s: %w", st.spec.Name, err)
			}
			s.truth.Skipped[st.spec.Name] = err.Error()
			if p != nil {
				p.Close()
			}
			continue
		}
		s.keep = append(s.keep, kept)
		if st.want != nil {
			s.want[id] = st.want
		}
		if i == 0 {
			if err := p.Pin(bpffs + "/vt_prog_pin"); err != nil {
				return err
			}
		}
		if l, ok := kept.(link.Link); ok && st.spec.Name == "vt_rawtp" {
			if err := os.Mkdir(bpffs+"/dir", 0o755); err != nil {
				return err
			}
			if err := l.Pin(bpffs + "/dir/vt_link_pin"); err != nil && !errors.Is(err, link.ErrNotSupported) {
				return err
			}
		}
	}
	return nil
}

//go:noinline
func probed() { fmt.Fprint(os.Stderr, "") }
