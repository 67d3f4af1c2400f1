package proc

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// TCPSocket is one line of /proc/PID/net/tcp or tcp6.
type TCPSocket struct {
	Inode     uint64
	Local     netip.AddrPort
	Listening bool
}

// tcpListen is TCP_LISTEN (include/net/tcp_states.h).
const tcpListen = 10

// TCPSockets returns the TCP sockets of the process's network namespace.
func (p *Process) TCPSockets() ([]TCPSocket, error) {
	b, err := p.ReadFile("net/tcp", 0)
	if err != nil {
		return nil, err
	}
	out := ParseTCPSockets(b)
	if b, err = p.ReadFile("net/tcp6", 0); err == nil { // absent without IPv6
		out = append(out, ParseTCPSockets(b)...)
	}
	return out, nil
}

// ParseTCPSockets parses the text of /proc/net/tcp; lines that it does not
// understand are passed over.
func ParseTCPSockets(b []byte) []TCPSocket {
	var out []TCPSocket
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() && len(out) < maxSockets {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
		f := strings.Fields(sc.Text())
		if len(f) < 10 {
			continue
		}
		local, ok := parseTCPAddr(f[1])
		st, err2 := strconv.ParseUint(f[3], 16, 8)
		ino, err3 := strconv.ParseUint(f[9], 10, 64)
		if !ok || err2 != nil || err3 != nil {
			continue
		}
		out = append(out, TCPSocket{Inode: ino, Local: local, Listening: st == tcpListen})
	}
	return out
}

// parseTCPAddr reads "0100007F:115C": the address in 32-bit words of the
// host's byte order, the port as a number.
func parseTCPAddr(s string) (netip.AddrPort, bool) {
	addr, port, ok := strings.Cut(s, ":")
	b, err1 := hex.DecodeString(addr)
	p, err2 := strconv.ParseUint(port, 16, 16)
	if !ok || err1 != nil || err2 != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		slices.Reverse(b[i : i+4])
	}
	a, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), ok
}
