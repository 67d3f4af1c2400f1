// Package qmp is a client of QEMU's machine protocol: as much of it as reading
// a VM's state takes.
//
// QEMU serves one client of a monitor at a time: connect, ask, Close. What
// QEMU answers is bounded in length, in count and in time. The package must not
// import any other package of Vantage but hypervisor (for its errors).
package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
)

const (
	// MaxMessage bounds one message of QEMU's, in bytes. The longest that is asked
	// for, the registers of some hundred vCPUs, takes 4 KiB a vCPU.
	MaxMessage = 16 << 20
	// maxEvents bounds the events that are passed over in wait of an answer.
	maxEvents = 10000
)

// ErrProtocol is wrapped by errors of a peer that does not speak QMP.
var ErrProtocol = errors.New("not a QMP monitor")

// CommandError is QEMU's refusal of a command.
type CommandError struct {
	Command string
	Class   string // "GenericError", "CommandNotFound"
	Desc    string // QEMU's text, at most 512 bytes
}

func (e *CommandError) Error() string {
	return fmt.Sprintf("qmp %s: %s: %q", e.Command, e.Class, e.Desc)
}

// Client is a connection to a QMP monitor, ready for commands. It is for one
// goroutine at a time.
type Client struct {
	conn net.Conn
	in   *bounded
	dec  *json.Decoder
	id   uint64

	// Version of QEMU, from its greeting.
	Major, Minor, Micro int
}

type message struct {
	QMP *struct {
		Version struct {
			QEMU struct{ Major, Minor, Micro int }
		}
	}
	ID     *uint64
	Event  string
	Return json.RawMessage
	Error  *struct{ Class, Desc string }
}

// New takes a fresh connection through QMP's handshake. The connection is the
// client's from then on, and closed on error. Silence until ctx's deadline is
// taken as a monitor that serves another client: the error then wraps
// hypervisor.ErrBusy. Nothing is sent before QEMU has greeted.
func New(ctx context.Context, conn net.Conn) (*Client, error) {
	in := &bounded{r: conn}
	c := &Client{conn: conn, in: in, dec: json.NewDecoder(in)}
	if err := c.handshake(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return c, nil
}

func (c *Client) handshake(ctx context.Context) error {
	defer c.watch(ctx)()
	var m message
	if err := c.read(&m); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(ctx.Err(), context.Canceled) {
			return fmt.Errorf("qmp: no greeting: %w", hypervisor.ErrBusy)
		}
		return fmt.Errorf("qmp: greeting: %w", errors.Join(context.Cause(ctx), err))
	}
	if m.QMP == nil {
		return fmt.Errorf("qmp: greeting: %w", ErrProtocol)
	}
	v := m.QMP.Version.QEMU
	c.Major, c.Minor, c.Micro = v.Major, v.Minor, v.Micro
	return c.execute("qmp_capabilities", nil, nil)
}

// watch makes the connection's reads and writes end with ctx. The returned
// function ends the watch.
func (c *Client) watch(ctx context.Context) func() {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Time{}
	}
	_ = c.conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

// Execute runs a command. args may be nil; result, when not nil, is filled in
// from QEMU's answer.
func (c *Client) Execute(ctx context.Context, command string, args, result any) error {
	defer c.watch(ctx)()
	err := c.execute(command, args, result)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("qmp %s: %w", command, errors.Join(context.Cause(ctx), err))
	}
	return err
}

func (c *Client) execute(command string, args, result any) error {
	c.id++
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, c.id})
	if err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	if _, err := c.conn.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	for range maxEvents {
		var m message
		if err := c.read(&m); err != nil {
			return fmt.Errorf("qmp %s: %w", command, err)
		}
		if m.Event != "" || m.ID == nil || *m.ID != c.id {
			// An error without an id is about a line that QEMU could not parse.
			if m.Error == nil || m.Event != "" || m.ID != nil {
				continue
			}
		}
		if m.Error != nil {
			return &CommandError{Command: command, Class: clip(m.Error.Class), Desc: clip(m.Error.Desc)}
		}
		if result == nil {
			return nil
		}
		if err := json.Unmarshal(m.Return, result); err != nil {
			return fmt.Errorf("qmp %s: answer: %w", command, err)
		}
		return nil
	}
	return fmt.Errorf("qmp %s: %w: nothing but events", command, ErrProtocol)
}

func clip(s string) string { return s[:min(len(s), 512)] }

// HMP runs a line of the human monitor and returns what it prints.
func (c *Client) HMP(ctx context.Context, line string) (string, error) {
	var out string
	args := map[string]string{"command-line": line}
	if err := c.Execute(ctx, "human-monitor-command", args, &out); err != nil {
		return "", fmt.Errorf("%q: %w", line, err)
	}
	return out, nil
}

// read reads one message: a line, or with a pretty monitor several.
func (c *Client) read(m *message) error {
	c.in.left = MaxMessage
	err := c.dec.Decode(m)
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	if errors.As(err, &syntax) || errors.As(err, &kind) {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return err
}

// bounded reads no more than left bytes.
type bounded struct {
	r    io.Reader
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("%w: a message of more than %d bytes", ErrProtocol, MaxMessage)
	}
	n, err := b.r.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// Close ends the connection. The VM and its monitor go on.
func (c *Client) Close() error { return c.conn.Close() }
