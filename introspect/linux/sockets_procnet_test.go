package linux

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// compareSockTables compares what is in the kernel's tables with the files of
// /proc/net in both namespaces: both ways, each line once.
func compareSockTables(t *testing.T, list []Socket, truth sockTruth) {
	for ns, files := range truth.ns {
		got := map[string][]string{}
		met := map[hypervisor.VirtAddr]bool{}
		for _, s := range list {
			if fmt.Sprint(s.NetNS) != ns || met[s.KernelAddress] || !slices.Contains(s.SeenIn, ViewSockHash) {
				continue
			}
			met[s.KernelAddress] = true
			file := sockProcFile(s)
			got[file] = append(got[file], sockProcLine(s, file))
		}
		for file, text := range files {
			var want []string
			lines := strings.Split(strings.TrimSpace(text), "\n")
			for _, line := range lines[1:] {
				want = append(want, parseProcNet(t, file, line))
			}
			slices.Sort(want)
			slices.Sort(got[file])
			if !slices.Equal(got[file], want) {
				t.Errorf("%s of %s:\n%s\nwant\n%s", file, ns, strings.Join(got[file], "\n"), strings.Join(want, "\n"))
			}
		}
		if len(files) < 11 || len(got["tcp"]) < 20 || len(got["unix"]) < 10 {
			t.Errorf("%s: %d files, %d TCP, %d UNIX", ns, len(files), len(got["tcp"]), len(got["unix"]))
		}
	}
}

// sockProcFile is the file of /proc/net that has s.
func sockProcFile(s Socket) string {
	six := ""
	if s.Family == "inet6" {
		six = "6"
	}
	switch {
	case s.Family != "inet" && s.Family != "inet6":
		return s.Family
	case s.Type == "raw":
		return "raw" + six
	case s.Proto == "icmpv6":
		return "icmp6"
	}
	return s.Proto + six
}

// sockProcLine says of s what its file of /proc/net does.
func sockProcLine(s Socket, file string) string {
	switch file {
	case "unix":
		return fmt.Sprintf("%s %s %d %q", s.Type, s.State, s.Inode, s.LocalAddr)
	case "netlink":
		return fmt.Sprintf("%s %d %d", s.Proto, s.LocalPort, s.Inode)
	case "packet":
		return fmt.Sprintf("%s %s %d %d %d", s.Type, s.Proto, s.Ifindex, s.UID, s.Inode)
	}
	uid := max(s.UID, 0) // 0 for one in TIME-WAIT
	port := fmt.Sprint(s.LocalPort)
	if s.Type == "raw" {
		port = s.Proto
	}
	return fmt.Sprintf("%s %s %s %d %s %d %d", s.LocalAddr, port, s.RemoteAddr, s.RemotePort, s.State, uid, s.Inode)
}

// parseProcNet makes a line of a file of /proc/net what sockProcLine returns.
func parseProcNet(t *testing.T, file, line string) string {
	t.Helper()
	w := strings.Fields(line)
	number := func(i, base int) int64 {
		n, err := strconv.ParseInt(w[i], base, 64)
		if err != nil {
			t.Fatalf("%s: %q: %v", file, line, err)
		}
		return n
	}
	switch file {
	case "unix":
		state := map[int64]string{1: "UNCONN", 2: "ESTAB", 3: "ESTAB"}[number(5, 16)]
		if number(3, 16) != 0 {
			state = "LISTEN"
		}
		path := ""
		if len(w) > 7 {
			_, path, _ = strings.Cut(line, " "+w[6]+" ")
		}
		return fmt.Sprintf("%s %s %d %q", sockName(sockTypes[:], uint64(number(4, 16))), state, number(6, 10), path)
	case "netlink":
		return fmt.Sprintf("%s %d %d", sockProtoName(afNetlink, uint16(number(1, 10))), number(2, 10), number(9, 10))
	case "packet":
		return fmt.Sprintf("%s %s %d %d %d", sockName(sockTypes[:], uint64(number(2, 10))), sockProtoName(afPacket, uint16(number(3, 16))),
			number(4, 10), number(7, 10), number(8, 10))
	}
	end := func(i int) (string, int64) {
		addr, port, _ := strings.Cut(w[i], ":")
		b, err := hex.DecodeString(addr)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+4 <= len(b); i += 4 { // words of the host's order
			slices.Reverse(b[i : i+4])
		}
		a, _ := netip.AddrFromSlice(b)
		n, _ := strconv.ParseInt(port, 16, 32)
		return a.String(), n
	}
	local, port := end(1)
	remote, remotePort := end(2)
	portText := fmt.Sprint(port)
	if strings.HasPrefix(file, "raw") {
		portText, remotePort = sockProtoName(afInet, uint16(port)), 0
	}
	return fmt.Sprintf("%s %s %s %d %s %d %d", local, portText, remote, remotePort, procStates[number(3, 16)], number(7, 10), number(9, 10))
}
