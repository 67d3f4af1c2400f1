package linux

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// bootSockets boots a guest that has the program of testdata/sockets.c.
func bootSockets(t testing.TB, kind guestKind, files ...lab.File) *lab.Guest {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		labtest.Missing(t, "no gcc here")
	}
	out := filepath.Join(t.TempDir(), "sockets")
	text, err := exec.CommandContext(t.Context(), gcc, "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-result", "-o", out, "testdata/sockets.c").CombinedOutput()
	if err != nil {
		t.Fatalf("gcc: %v\n%s", err, text)
	}
	return labtest.Boot(t, lab.Config{
		Name: "sockets-" + kind.String(), Kernel: kind.kernel(t), LA57: kind.la57, Shared: true, KASLR: true,
		Files: append(files, lab.File{Path: "bin/sockets", Mode: 0o755, Host: out}), Modules: kind.modules(t, []string{"vsock_loopback", "sctp"}, "crc32c_generic"),
	})
}

// runSockets runs the program, which stays, and returns what it said.
func runSockets(t testing.TB, g *lab.Guest, args string) string {
	t.Helper()
	out, err := g.Run(t.Context(), `>/tmp/truth
		sockets `+args+` >/tmp/truth 2>&1 </dev/null &
		until grep -q -e READY -e FAILED /tmp/truth; do usleep 10000; done
		cat /tmp/truth`)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, "READY") {
		t.Fatalf("the program failed: %s", out)
	}
	return out
}

// sockTruth is what a guest says of its sockets.
type sockTruth struct {
	files []string                     // lines "sock …" of the program
	peers [][2]string                  // inodes
	ns    map[string]map[string]string // inode of the namespace → file of /proc/net → its text
}

func readSockTruth(t *testing.T, g *lab.Guest) sockTruth {
	t.Helper()
	truth := sockTruth{ns: map[string]map[string]string{}}
	var pids []string
	for line := range strings.Lines(runSockets(t, g, "")) {
		w := strings.Fields(line)
		switch {
		case len(w) > 1 && w[0] == "sock":
			truth.files = append(truth.files, strings.TrimSpace(line))
		case len(w) == 3 && w[0] == "peers":
			truth.peers = append(truth.peers, [2]string{w[1], w[2]}, [2]string{w[2], w[1]})
		case len(w) == 3 && w[0] == "READY":
			pids = w[1:]
		}
	}
	out, err := g.Run(t.Context(), `for p in `+strings.Join(pids, " ")+`; do
		echo NS $(readlink /proc/$p/ns/net | tr -dc 0-9)
		for f in tcp tcp6 udp udp6 udplite udplite6 raw raw6 icmp icmp6 unix netlink packet; do
			[ -e /proc/$p/net/$f ] && echo FILE $f && base64 /proc/$p/net/$f
		done
	done; true`)
	if err != nil {
		t.Fatal(err)
	}
	var ns, file string
	encoded := map[string]map[string]string{}
	for line := range strings.Lines(out) {
		w := strings.Fields(line)
		switch {
		case len(w) == 2 && w[0] == "NS":
			ns = w[1]
			encoded[ns], truth.ns[ns] = map[string]string{}, map[string]string{}
		case len(w) == 2 && w[0] == "FILE":
			file = w[1]
		case len(w) == 1 && ns != "" && file != "":
			encoded[ns][file] += w[0]
		}
	}
	for ns, files := range encoded {
		for file, text := range files {
			b, err := base64.StdEncoding.DecodeString(text)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			truth.ns[ns][file] = string(b)
		}
	}
	if len(truth.ns) != 2 || len(truth.files) < 150 {
		t.Fatalf("%d namespaces, %d sockets", len(truth.ns), len(truth.files))
	}
	return truth
}

// Sockets of every family, in every state, in two network namespaces, are what
// the guest's own kernel says they are, field by field. None is called hidden;
// one that is taken out of its table is.
func TestSockets(t *testing.T) {
	for _, kind := range guestKinds() {
		t.Run(kind.String(), func(t *testing.T) {
			g := bootSockets(t, kind, labtest.RootkitOf(t, kind.suite, kind.flavour, "/kit.ko", "lurking"))
			truth := readSockTruth(t, g)
			if err := g.Pause(t.Context()); err != nil {
				t.Fatal(err)
			}
			vm := openRAM(t, g)
			guest, err := Open(t.Context(), vm, Options{})
			if err != nil {
				t.Fatal(err)
			}
			l, err := guest.Sockets(t.Context(), SocketOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range l.Coverage.Problems() {
				t.Errorf("not covered: %v", p)
			}
			for _, s := range l.Sockets {
				if s.Hidden {
					t.Errorf("%+v is called hidden", s)
				}
			}
			t.Run("files", func(t *testing.T) { compareSockFiles(t, l.Sockets, truth) })
			t.Run("tables", func(t *testing.T) { compareSockTables(t, l.Sockets, truth) })
			t.Run("options", func(t *testing.T) { checkSockOptions(t, guest, l.Sockets) })
			t.Run("hidden", func(t *testing.T) { hideSockets(t, vm, l.Sockets) })
			resume(t, g)
			t.Run("storm", func(t *testing.T) { sockStorm(t, g) })
			t.Run("rootkit", func(t *testing.T) { sockRootkit(t, g, l.Sockets) })
		})
	}
}

// procStates are the states in /proc/net/tcp, and in TCP_INFO, as ss names them.
var procStates = map[int64]string{
	1: "ESTAB", 2: "SYN-SENT", 3: "SYN-RECV", 4: "FIN-WAIT-1", 5: "FIN-WAIT-2", 6: "TIME-WAIT", 7: "UNCONN",
	8: "CLOSE-WAIT", 9: "LAST-ACK", 10: "LISTEN", 11: "CLOSING", 12: "SYN-RECV",
}

// compareSockFiles compares sockets with what the program's system calls said.
func compareSockFiles(t *testing.T, list []Socket, truth sockTruth) {
	rows := map[string][]Socket{}
	byInode := map[string]Socket{}
	for _, s := range list {
		if s.FD >= 0 && s.Proto != "tcp" || s.FD >= 0 && len(s.SeenIn) == 2 || s.FD >= 0 && s.SeenIn[0] == ViewFiles {
			key := fmt.Sprintf("%d %d", s.PID, s.Inode)
			rows[key] = append(rows[key], s)
			byInode[fmt.Sprint(s.Inode)] = s
		}
	}
	families := map[string]string{"1": "unix", "2": "inet", "10": "inet6", "16": "netlink", "17": "packet", "40": "vsock", "44": "xdp"}
	types := map[string]string{"1": "stream", "2": "dgram", "3": "raw", "5": "seqpacket"}
	protos := map[string]string{
		"inet 6": "tcp", "inet 17": "udp", "inet 136": "udplite", "inet 1": "icmp", "inet 89": "ospf", "inet 253": "253", "inet 254": "254",
		"inet 132": "sctp", "inet 262": "mptcp", "inet6 6": "tcp", "inet6 17": "udp", "inet6 136": "udplite", "inet6 58": "icmpv6",
		"inet6 89": "ospf", "inet6 253": "253", "inet6 254": "254", "netlink 0": "route", "netlink 15": "kobject_uevent", "netlink 16": "generic",
		"unix 0": "", "vsock 0": "", "xdp 0": "",
	}
	seen := map[string]bool{}
	states := map[string]bool{}
	for _, line := range truth.files {
		w := strings.SplitN(line, " ", 11)
		key := w[1] + " " + w[3]
		if seen[key] {
			continue // the same socket under a higher number
		}
		seen[key] = true
		got := slices.DeleteFunc(slices.Clone(rows[key]), func(s Socket) bool {
			return s.Proto == "tcp" && w[8] == "262" // a subflow
		})
		if len(got) != 1 {
			t.Errorf("%s: %d sockets, want 1", line, len(got))
			continue
		}
		s := got[0]
		family := families[w[6]]
		proto := protos[family+" "+w[8]]
		if family == "packet" {
			proto = s.Proto // in /proc/net/packet
		}
		check := func(what string, got, want any) {
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: %s %v, want %v", line, what, got, want)
			}
		}
		check("fd", s.FD, w[2])
		check("netns", s.NetNS, w[4])
		check("uid", s.UID, w[5])
		check("family", s.Family, family)
		check("type", s.Type, types[w[7]])
		check("proto", s.Proto, proto)
		check("comm", s.Comm, "sockets")
		check("in the files", slices.Contains(s.SeenIn, ViewFiles), true)
		if w[9] != "0" {
			n, _ := strconv.ParseInt(w[9], 10, 32)
			check("state", s.State, procStates[n])
			states[s.State] = true
		}
		local, remote, _ := strings.Cut(w[10], "|")
		check("local end", sockEnd(s, s.LocalAddr, s.LocalPort), sockTruthEnd(s, local))
		if remote != "" && s.Proto != "icmp" && s.Proto != "icmpv6" {
			check("remote end", sockEnd(s, s.RemoteAddr, s.RemotePort), sockTruthEnd(s, remote))
		}
	}
	for _, state := range procStates {
		if !states[state] && state != "TIME-WAIT" && state != "SYN-RECV" {
			t.Errorf("no socket in state %s", state)
		}
	}
	for _, p := range truth.peers {
		if s := byInode[p[0]]; fmt.Sprint(s.PeerInode) != p[1] {
			t.Errorf("the peer of %s is %d, want %s", p[0], s.PeerInode, p[1])
		}
	}
}

// sockEnd writes an end of s as the program does.
func sockEnd(s Socket, addr string, port uint32) string {
	switch s.Family {
	case "unix":
		return addr
	case "inet", "inet6", "vsock", "netlink":
		return fmt.Sprintf("%s %d", addr, port)
	}
	return ""
}

// sockTruthEnd is what the program wrote, as this package shows it.
func sockTruthEnd(s Socket, text string) string {
	switch {
	case s.Family == "unix":
		b, _ := hex.DecodeString(text)
		if len(b) > 0 && b[0] != 0 {
			return strings.TrimRight(string(b), "\x00")
		}
		return strings.ReplaceAll(string(b), "\x00", "@")
	case s.Family == "vsock":
		return strings.Replace(text, "4294967295 ", "* ", 1)
	case s.Type == "raw" && s.Family != "netlink" && s.Family != "packet" && s.Family != "xdp":
		addr, _, _ := strings.Cut(text, " ")
		return addr + " 0"
	}
	return text
}

func checkSockOptions(t *testing.T, g *Guest, all []Socket) {
	pid := 0
	for _, s := range all {
		pid = max(pid, s.PID)
	}
	for _, opt := range []SocketOptions{{Listening: true}, {PID: pid}, {Listening: true, PID: pid}} {
		l, err := g.Sockets(t.Context(), opt)
		if err != nil || len(l.Sockets) == 0 {
			t.Fatal(err, len(l.Sockets))
		}
		want := slices.DeleteFunc(slices.Clone(all), func(s Socket) bool {
			return opt.Listening && !s.Listens() || opt.PID != 0 && s.PID != opt.PID
		})
		if !slices.EqualFunc(l.Sockets, want, func(a, b Socket) bool { return fmt.Sprint(a) == fmt.Sprint(b) }) {
			t.Errorf("%+v: %d sockets, want %d", opt, len(l.Sockets), len(want))
		}
	}
}
