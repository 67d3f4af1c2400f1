package proc

import (
	"bufio"
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// maxSockets bounds the lines of net/unix and net/tcp that are looked at.
const maxSockets = 1 << 18

// UnixSocket is one line of /proc/PID/net/unix.
type UnixSocket struct {
	Inode     uint64
	Path      string // as it was bound; "@…" is abstract
	Listening bool   // __SO_ACCEPTCON
	Connected bool   // SS_CONNECTED; false while a client waits to be accepted
}

// Flags and states of /proc/net/unix (include/uapi/linux/net.h).
const (
	soAcceptCon = 1 << 16 // __SO_ACCEPTCON
	ssConnected = 3       // SS_CONNECTED
)

// UnixSockets returns the bound unix sockets of the process's network
// namespace. An accepted socket has the path of its listener.
func (p *Process) UnixSockets() ([]UnixSocket, error) {
	b, err := p.ReadFile("net/unix", 0)
	if err != nil {
		return nil, err
	}
	return ParseUnixSockets(b), nil
}

// ParseUnixSockets parses the text of /proc/net/unix; lines that it does not
// understand are passed over.
func ParseUnixSockets(b []byte) []UnixSocket {
	var out []UnixSocket
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() && len(out) < maxSockets {
		// Num RefCount Protocol Flags Type St Inode Path
		f := strings.Fields(sc.Text())
		if len(f) < 8 {
			continue
		}
		flags, err1 := strconv.ParseUint(f[3], 16, 32)
		st, err2 := strconv.ParseUint(f[5], 16, 8)
		ino, err3 := strconv.ParseUint(f[6], 10, 64)
		if err1 != nil || err2 != nil || err3 != nil {
			continue
		}
		// The path is the rest of the line, blanks included.
		i := strings.Index(sc.Text(), " "+f[6]+" ")
		if i < 0 {
			continue
		}
		out = append(out, UnixSocket{
			Inode:     ino,
			Path:      sc.Text()[i+len(f[6])+2:],
			Listening: flags&soAcceptCon != 0,
			Connected: st == ssConnected,
		})
	}
	return out
}

// SocketInode returns the inode of a link text "socket:[N]".
func SocketInode(link string) (uint64, bool) {
	s, ok := strings.CutPrefix(link, "socket:[")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(s, "]"), 10, 64)
	return n, err == nil
}

// ThreadSignals are a thread's signal masks; bit N-1 is signal N.
type ThreadSignals struct {
	Name    string
	Blocked uint64
	Caught  uint64
}

// ThreadSignals reads the masks of thread tid.
func (p *Process) ThreadSignals(tid int) (ThreadSignals, error) {
	name := fmt.Sprintf("task/%d/status", tid)
	b, err := p.ReadFile(name, 64<<10)
	if err != nil {
		return ThreadSignals{}, err
	}
	return ParseThreadSignals(b)
}

// ParseThreadSignals parses the text of /proc/PID/task/TID/status.
func ParseThreadSignals(b []byte) (s ThreadSignals, err error) {
	seen := 0
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		key, val, ok := strings.Cut(sc.Text(), ":")
		if !ok {
			continue
		}
		val = strings.TrimSpace(val)
		switch key {
		case "Name":
			s.Name = val
		case "SigBlk":
			s.Blocked, err = strconv.ParseUint(val, 16, 64)
			seen++
		case "SigCgt":
			s.Caught, err = strconv.ParseUint(val, 16, 64)
			seen++
		}
		if err != nil {
			return s, fmt.Errorf("status: %s: %w", key, err)
		}
	}
	if seen != 2 {
		return s, fmt.Errorf("status: signal masks are missing")
	}
	return s, nil
}
