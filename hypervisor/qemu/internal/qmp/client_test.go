package qmp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// greeting is that of QEMU 7.2.
const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2+dfsg-7"}, "capabilities": ["oob"]}}`

// serve answers a client over a pipe: first says what a server says at once,
// answer what it says to each command.
func serve(t *testing.T, first string, answer func(command string, id json.RawMessage) string) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer theirs.Close()
		if _, err := io.WriteString(theirs, first); err != nil || answer == nil {
			_, _ = io.Copy(io.Discard, theirs)
			return
		}
		d := json.NewDecoder(theirs)
		for {
			var req struct {
				Execute string
				ID      json.RawMessage
			}
			if d.Decode(&req) != nil {
				return
			}
			if _, err := io.WriteString(theirs, answer(req.Execute, req.ID)); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { _ = ours.Close(); <-done })
	return ours
}

func ok(id json.RawMessage, value string) string {
	return `{"return": ` + value + `, "id": ` + string(id) + "}\r\n"
}

func TestClient(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn := serve(t, greeting+"\r\n", func(cmd string, id json.RawMessage) string {
		const event = `{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}` + "\r\n"
		switch cmd {
		case "query-status":
			return event + ok(json.RawMessage("7777"), `{"running": false}`) + event + ok(id, `{"running": true, "status": "running"}`)
		case "pretty":
			return "{\n    \"return\": {\n        \"running\": true\n    },\n    \"id\": " + string(id) + "\n}\n"
		case "human-monitor-command":
			return ok(id, `"text\r\n"`)
		case "bad":
			return `{"id": ` + string(id) + `, "error": {"class": "CommandNotFound", "desc": "The command bad has not been found"}}` + "\r\n"
		case "garbage":
			return "HTTP/1.1 400 Bad Request\r\n"
		}
		return ok(id, "{}")
	})
	c, err := New(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if c.Major != 7 || c.Minor != 2 || c.Micro != 22 {
		t.Errorf("version %d.%d.%d", c.Major, c.Minor, c.Micro)
	}
	var st struct{ Running bool }
	if err := c.Execute(ctx, "query-status", nil, &st); err != nil || !st.Running {
		t.Errorf("query-status = %v, %v", st, err)
	}
	st.Running = false
	if err := c.Execute(ctx, "pretty", nil, &st); err != nil || !st.Running {
		t.Errorf("an answer of several lines = %v, %v", st, err)
	}
	if s, err := c.HMP(ctx, "info version"); s != "text\r\n" || err != nil {
		t.Errorf("HMP = %q, %v", s, err)
	}
	var refused *CommandError
	if err := c.Execute(ctx, "bad", nil, nil); !errors.As(err, &refused) || refused.Class != "CommandNotFound" {
		t.Errorf("bad = %v", err)
	}
	if err := c.Execute(ctx, "garbage", nil, nil); !errors.Is(err, ErrProtocol) {
		t.Errorf("garbage = %v", err)
	}
}

func TestHandshakeFailures(t *testing.T) {
	for _, tt := range []struct {
		name, first string
		want        error
	}{
		{"silent", "", hypervisor.ErrBusy},
		{"not QMP", "SSH-2.0-OpenSSH_9.2\r\n", ErrProtocol},
		{"other JSON", `{"hello": 1}` + "\n", ErrProtocol},
		{"half a line", `{"QMP": `, hypervisor.ErrBusy},
		{"endless message", `{"QMP": "` + strings.Repeat("x", MaxMessage+65536), ErrProtocol},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if strings.HasPrefix(tt.name, "endless") {
				ctx = t.Context()
			}
			if _, err := New(ctx, serve(t, tt.first, nil)); !errors.Is(err, tt.want) {
				t.Errorf("New = %v, want %v", err, tt.want)
			}
		})
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := New(ctx, serve(t, "", nil)); !errors.Is(err, context.Canceled) || errors.Is(err, hypervisor.ErrBusy) {
		t.Errorf("New = %v, want Canceled", err)
	}
}

// Events without end are not waited out.
func TestEventFlood(t *testing.T) {
	event := strings.Repeat(`{"event": "RTC_CHANGE"}`+"\n", maxEvents+1)
	conn := serve(t, greeting+"\n", func(cmd string, id json.RawMessage) string {
		if cmd == "qmp_capabilities" {
			return ok(id, "{}")
		}
		return event
	})
	c, err := New(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := c.Execute(t.Context(), "stop", nil, nil); !errors.Is(err, ErrProtocol) {
		t.Errorf("Execute = %v", err)
	}
}

// replay is a connection whose peer says what it says, whatever it is asked.
type replay struct{ *bytes.Reader }

func (replay) Write(p []byte) (int, error)      { return len(p), nil }
func (replay) Close() error                     { return nil }
func (replay) LocalAddr() net.Addr              { return nil }
func (replay) RemoteAddr() net.Addr             { return nil }
func (replay) SetDeadline(time.Time) error      { return nil }
func (replay) SetReadDeadline(time.Time) error  { return nil }
func (replay) SetWriteDeadline(time.Time) error { return nil }

func FuzzClient(f *testing.F) {
	f.Add([]byte(greeting + "\r\n" + `{"return": {}, "id": 1}` + "\r\n" + `{"event": "STOP"}` + "\n" + `{"return": {"running": true}, "id": 2}` + "\n"))
	f.Add([]byte(greeting + "\n" + `{"error": {"class": "GenericError", "desc": "x"}}` + "\n"))
	f.Add([]byte("{}\n"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		c, err := New(context.Background(), replay{bytes.NewReader(b)})
		if err != nil {
			return
		}
		var st struct{ Running bool }
		_ = c.Execute(context.Background(), "query-status", nil, &st)
		_, _ = c.HMP(context.Background(), "info mtree -f")
	})
}
