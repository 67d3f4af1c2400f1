package linux

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Names as bpftool prints them, by number (include/uapi/linux/bpf.h).
var (
	bpfProgNames = strings.Fields(`unspec socket_filter kprobe sched_cls sched_act tracepoint xdp perf_event cgroup_skb cgroup_sock lwt_in
		lwt_out lwt_xmit sock_ops sk_skb cgroup_device sk_msg raw_tracepoint cgroup_sock_addr lwt_seg6local lirc_mode2 sk_reuseport
		flow_dissector cgroup_sysctl raw_tracepoint_writable cgroup_sockopt tracing struct_ops ext lsm sk_lookup syscall netfilter`)
	bpfMapNames = strings.Fields(`unspec hash array prog_array perf_event_array percpu_hash percpu_array stack_trace cgroup_array lru_hash
		lru_percpu_hash lpm_trie array_of_maps hash_of_maps devmap sockmap cpumap xskmap sockhash cgroup_storage reuseport_sockarray
		percpu_cgroup_storage queue stack sk_storage devmap_hash struct_ops ringbuf`)
	bpfLinkNames = strings.Fields(`unspec raw_tracepoint tracing cgroup iter netns xdp perf_event kprobe_multi struct_ops netfilter tcx
		uprobe_multi netkit sockmap`)
)

// Everything that the kernel says of its eBPF is found in its memory, and where
// each program is attached.
func TestBPFOfGuests(t *testing.T) {
	for _, kind := range guestKinds() {
		t.Run(kind.String(), func(t *testing.T) {
			guest, truth := bootHooks(t, kind)
			g := pausedHooks(t, guest)
			l, err := g.BPF(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range l.Coverage.Problems() {
				t.Errorf("not covered: %v", p)
			}
			compareBPFPrograms(t, g, l, truth)
			var got, want []string
			for _, m := range l.Maps {
				got = append(got, fmt.Sprintln(m.ID, m.Type, m.Name, m.KeySize, m.ValueSize, m.MaxEntries, m.Flags, m.Frozen))
				if m.Name == "vt_hash" && !slices.Equal(m.Pinned, []string{"/sys/fs/bpf/vt_hash_pin"}) {
					t.Errorf("map %s is pinned at %q", m.Name, m.Pinned)
				}
				if strings.HasPrefix(m.Name, "vt_") && !slices.Equal(m.PIDs, []int{truth.PID}) {
					t.Errorf("map %s is held by %v", m.Name, m.PIDs)
				}
			}
			for _, m := range truth.Maps {
				want = append(want, fmt.Sprintln(m.ID, bpfMapNames[m.Type], m.Name, m.Key, m.Value, m.Max, m.Flags, m.Frozen))
			}
			if !slices.Equal(got, want) || len(want) < 8 {
				t.Errorf("maps\n%q, want\n%q", got, want)
			}
			got, want = nil, nil
			for _, k := range l.Links {
				got = append(got, fmt.Sprintln(k.ID, k.Type, k.ProgramID))
				if !slices.Equal(k.PIDs, []int{truth.PID}) {
					t.Errorf("link %d is held by %v", k.ID, k.PIDs)
				}
				if pins := []string{"/sys/fs/bpf/dir/vt_link_pin"}; k.Attachment.Function == "sched_process_exit" && !slices.Equal(k.Pinned, pins) {
					t.Errorf("link %d is pinned at %q", k.ID, k.Pinned)
				}
			}
			for _, k := range truth.Links {
				want = append(want, fmt.Sprintln(k.ID, bpfLinkNames[k.Type], k.Program))
			}
			if !slices.Equal(got, want) || len(want) < 5 {
				t.Errorf("links\n%q, want\n%q", got, want)
			}
			t.Logf("%d programs, %d maps, %d links", len(l.Programs), len(l.Maps), len(l.Links))
		})
	}
}

func compareBPFPrograms(t *testing.T, g *Guest, l BPFList, truth hooksTruth) {
	t.Helper()
	boot, err := g.bootTime()
	if err != nil {
		t.Fatal(err)
	}
	code, err := g.codeMap(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	places := map[uint32]BPFProgram{}
	for _, p := range l.Programs {
		got = append(got, fmt.Sprintln(p.ID, p.Type, p.Name, p.Tag, p.UID, p.JITAddress, p.JITSize, p.Instructions, p.MapIDs, p.LoadTime.Sub(boot)))
		places[p.ID] = p
		if strings.HasPrefix(p.Name, "vt_") && !slices.Equal(p.PIDs, []int{truth.PID}) {
			t.Errorf("program %s is held by %v", p.Name, p.PIDs)
		}
		if p.Name == "vt_sock" && !slices.Equal(p.Pinned, []string{"/sys/fs/bpf/vt_prog_pin"}) {
			t.Errorf("program %s is pinned at %q", p.Name, p.Pinned)
		}
		// The first of several functions has a tag of its own until 5.12.
		if c := code.owner(p.JITAddress); c.Kind != CodeBPF || !strings.HasPrefix(c.Owner, "bpf_prog_"+p.Tag) && p.Name != "vt_calls" {
			t.Errorf("the code of program %s at %v is said to be %+v", p.Name, p.JITAddress, c)
		}
	}
	for _, p := range truth.Programs {
		slices.Sort(p.Maps)
		want = append(want, fmt.Sprintln(p.ID, bpfProgNames[p.Type], p.Name, p.Tag, p.UID, hypervisor.VirtAddr(p.Address), p.Size, p.Count, p.Maps, time.Duration(p.LoadTime)))
		if p.Place == nil {
			continue
		}
		as := places[p.ID].Attachments
		if len(as) != 1 {
			t.Errorf("program %s: attachments %+v", p.Name, as)
			continue
		}
		a, w := as[0], *p.Place
		if w.Type != "" && a.Type != w.Type || w.Function == "sched_process_exit" && a.Type != "" || a.Cgroup != w.Cgroup || a.Function != w.Function || a.Interface != w.Interface ||
			a.Path != w.Path || a.Iterator != w.Iterator || (a.Interface != "" || a.Type == "sk_lookup") && a.Net == 0 {
			t.Errorf("program %s: attached to %+v, want %+v", p.Name, a, w)
		}
	}
	if !slices.Equal(got, want) || len(want) < 10 {
		t.Errorf("programs\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, v := range []any{l.Programs, l.Maps, l.Links} {
		if b, err := json.Marshal(v); err != nil || !strings.Contains(string(b), `"kind":"`) {
			t.Errorf("%s, %v", b, err)
		}
	}
}
