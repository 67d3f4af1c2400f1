package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"time"
)

// monitor speaks QMP (docs/interop/qmp-spec.rst of QEMU) over a socket that
// QEMU inherited.
type monitor struct {
	mu   sync.Mutex
	conn net.Conn
	r    *bufio.Reader
	up   bool // capabilities were negotiated
	err  error
}

func newMonitor(conn net.Conn) *monitor {
	return &monitor{conn: conn, r: bufio.NewReaderSize(conn, 64<<10)}
}

type qmpReply struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// do runs one command. Events in between are dropped.
func (m *monitor) do(ctx context.Context, command string, args any) (json.RawMessage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return nil, fmt.Errorf("monitor: %s: earlier failure: %w", command, m.err)
	}
	// An interrupted exchange leaves the stream in the middle of a reply, so
	// the monitor is of no use afterwards.
	stop := context.AfterFunc(ctx, func() { m.conn.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // fails only when closed, as does all else then
	defer stop()
	if !m.up {
		if _, err := m.r.ReadSlice('\n'); err != nil { // the greeting
			return nil, m.fail(ctx, command, err)
		}
		if _, err := m.exchange("qmp_capabilities", nil); err != nil {
			return nil, m.fail(ctx, command, err)
		}
		m.up = true
	}
	r, err := m.exchange(command, args)
	if err != nil {
		return nil, m.fail(ctx, command, err)
	}
	if r.Error != nil {
		return nil, fmt.Errorf("monitor: %s: %s: %s", command, r.Error.Class, r.Error.Desc)
	}
	return r.Return, nil
}

func (m *monitor) fail(ctx context.Context, command string, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	m.err = err
	return fmt.Errorf("monitor: %s: %w", command, err)
}

func (m *monitor) exchange(command string, args any) (*qmpReply, error) {
	req := map[string]any{"execute": command}
	if args != nil {
		req["arguments"] = args
	}
	b, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	if _, err := m.conn.Write(append(b, '\n')); err != nil {
		return nil, err
	}
	for {
		line, err := m.r.ReadBytes('\n')
		if err != nil {
			return nil, err
		}
		var r qmpReply
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, fmt.Errorf("bad reply: %w", err)
		}
		if r.Return != nil || r.Error != nil {
			return &r, nil
		}
	}
}
