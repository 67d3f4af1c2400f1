package policy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/event"
)

func closeLog(t testing.TB, l *DecisionLog) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := l.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

// readLog checks that a file is NDJSON and returns its entries.
func readLog(t testing.TB, path string) []map[string]any {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 0 && b[len(b)-1] != '\n' {
		t.Errorf("%s ends inside of a line", path)
	}
	var out []map[string]any
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var v map[string]any
		if err := json.Unmarshal(sc.Bytes(), &v); err != nil {
			t.Errorf("%s: no JSON: %q", path, sc.Text())
		}
		if bytes.ContainsFunc(sc.Bytes(), func(r rune) bool { return r < 0x20 || r == 0x7f || r == 0x9b }) {
			t.Errorf("%s: a control character stands in %q", path, sc.Text())
		}
		out = append(out, v)
	}
	return out
}

func TestDecisionLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "decisions.ndjson")
	l, err := NewDecisionLog(LogOptions{Path: path, Input: true})
	if err != nil {
		t.Fatal(err)
	}
	e := engineOf(t, `package vantage
decision := {"verdict": "malicious", "responses": [{"response": "alert", "severity": "high", "reason": input.process.comm}]} if input.process.comm != "fail"
`, Options{Log: l})
	const hostile = "\x1b[2J\u009b\u202e\n\x00\xff"
	ev := finding("high")
	ev.Process.Comm = hostile
	d := e.Decide(context.Background(), ev)
	ev.Process.Comm = "fail"
	failed := e.Decide(context.Background(), ev)
	closeLog(t, l)

	got := readLog(t, path)
	if len(got) != 2 {
		t.Fatalf("%d lines", len(got))
	}
	for i, d := range []*Decision{d, failed} {
		for k, want := range map[string]any{
			"decision_id": d.ID, "event_id": ev.ID, "event_kind": "finding.scan", "vm": "qemu:1", "digest": d.Digest,
			"time": d.Time.String(), "verdict": string(d.Verdict), "duration_seconds": d.DurationSeconds,
		} {
			if got[i][k] != want {
				t.Errorf("line %d: %s is %v, want %v", i+1, k, got[i][k], want)
			}
		}
		if len(got[i]["input_sha256"].(string)) != 64 || got[i]["input"].(map[string]any)["id"] != ev.ID {
			t.Errorf("line %d: input %v", i+1, got[i]["input"])
		}
	}
	if got[1]["error"] != failed.Error || got[1]["fail_mode"] != "alert" || got[0]["error"] != nil {
		t.Errorf("%v", got[1])
	}
	if s := l.Stats(); s != (LogStats{Written: 2}) {
		t.Errorf("%+v", s)
	}
	// Closed: counted, not lost silently; a second Close is nothing.
	e.Decide(context.Background(), ev)
	closeLog(t, l)
	if s := l.Stats(); s.Dropped != 1 {
		t.Errorf("%+v", s)
	}
}

func decision(i int) *Decision {
	return &Decision{ID: fmt.Sprint(i), Time: event.At(time.Unix(int64(i), 0)), Result: Result{Verdict: Benign, Responses: []Response{}}}
}

func TestDecisionLogRotates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := NewDecisionLog(LogOptions{Path: path, MaxBytes: 2000, MaxFiles: 3})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		l.add(decision(i), nil)
		// One by one, as a batch is written as a whole.
		eventually(t, "written", func() bool { return l.Stats().Written == uint64(i+1) })
	}
	closeLog(t, l)
	next := 200
	for _, name := range []string{path, path + ".1", path + ".2", path + ".3"} {
		info, err := os.Stat(name)
		if err != nil || info.Size() > 2000 || info.Mode().Perm() != 0o600 {
			t.Fatalf("%v %v", info, err)
		}
		entries := readLog(t, name)
		for i := len(entries) - 1; i >= 0; i-- {
			next--
			if entries[i]["decision_id"] != fmt.Sprint(next) {
				t.Fatalf("%s: entry %v, want %d", name, entries[i]["decision_id"], next)
			}
		}
	}
	if _, err := os.Stat(path + ".4"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("too many files: %v", err)
	}
}

func TestDecisionLogRotationFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	// A folder that is not empty stands where the rotated file would be.
	writeFiles(t, path+".1", map[string]string{"x": ""})
	l, err := NewDecisionLog(LogOptions{Path: path, MaxBytes: 500, MaxFiles: 1})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		l.add(decision(i), nil)
		eventually(t, "written", func() bool { return l.Stats().Written == uint64(i+1) })
	}
	closeLog(t, l)
	if n := len(readLog(t, path)); n != 50 {
		t.Errorf("%d entries", n)
	}
	if l.Stats().Errors == 0 {
		t.Error("the failed rotation is not counted")
	}
}

func TestDecisionLogEndsATornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("{\"decision_id\":\"a\"}\n{\"decisi"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := NewDecisionLog(LogOptions{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	l.add(decision(1), nil)
	closeLog(t, l)
	b, _ := os.ReadFile(path)
	lines := strings.Split(string(b), "\n")
	if len(lines) != 4 || !json.Valid([]byte(lines[2])) || lines[1] != `{"decisi` {
		t.Errorf("%q", lines)
	}
}

// TestDecisionLogOnAFullDisk writes to /dev/full: ENOSPC from the kernel.
func TestDecisionLogOnAFullDisk(t *testing.T) {
	var mu sync.Mutex
	var told []error
	l, err := NewDecisionLog(LogOptions{Path: "/dev/full", OnError: func(err error) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, err)
	}})
	if err != nil {
		t.Fatal(err)
	}
	e := engineOf(t, pausing("x"), Options{Log: l})
	for range 20 {
		if d := e.Decide(context.Background(), finding("high")); d.Err != nil {
			t.Fatal(d.Err)
		}
	}
	closeLog(t, l)
	if s := l.Stats(); s.Dropped != 20 || s.Written != 0 || s.Errors == 0 {
		t.Errorf("%+v", s)
	}
	if len(told) != 1 || !errors.Is(told[0], syscall.ENOSPC) {
		t.Errorf("told %v", told)
	}
}

// diskFile is a file in memory on a disk of limited size, which can hang.
type diskFile struct {
	mu         sync.Mutex
	data       []byte
	limit      int
	noTruncate bool
	hang       chan struct{} // Write waits for it
	entered    chan struct{} // told of a Write that waits
}

func (f *diskFile) Write(p []byte) (int, error) {
	if f.hang != nil {
		select {
		case f.entered <- struct{}{}:
		default:
		}
		<-f.hang
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n := min(len(p), f.limit-len(f.data))
	f.data = append(f.data, p[:n]...)
	if n < len(p) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

func (f *diskFile) Truncate(size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.noTruncate {
		return syscall.EIO
	}
	f.data = f.data[:size]
	return nil
}

func (f *diskFile) Close() error { return nil }

// TestDecisionLogCutShort: whatever of a line got onto a full disk is taken off
// again, and once there is space, the log goes on and says how much it lost.
func TestDecisionLogCutShort(t *testing.T) {
	for _, noTruncate := range []bool{false, true} {
		for limit := 0; limit < 700; limit += 17 {
			f := &diskFile{limit: limit, noTruncate: noTruncate}
			l, err := newDecisionLog(LogOptions{Path: "x"}, func(string) (logFile, int64, error) { return f, 0, nil })
			if err != nil {
				t.Fatal(err)
			}
			settled := func(n uint64) {
				eventually(t, "settled", func() bool { s := l.Stats(); return s.Written+s.Dropped == n })
			}
			for i := range 3 {
				l.add(decision(i), nil)
			}
			settled(3)
			lost := l.Stats().Dropped
			f.mu.Lock()
			f.limit = 1 << 20
			f.mu.Unlock()
			l.add(decision(3), nil)
			closeLog(t, l)
			lines := bytes.Split(bytes.TrimSuffix(f.data, []byte("\n")), []byte("\n"))
			var good []LogEntry
			for _, line := range lines {
				var e LogEntry
				if json.Unmarshal(line, &e) == nil {
					good = append(good, e)
				} else if !noTruncate {
					t.Fatalf("limit %d: %q", limit, line)
				}
			}
			if len(good) == 0 || good[len(good)-1].ID != "3" || good[len(good)-1].Dropped != lost || uint64(len(good)) < 4-lost {
				t.Fatalf("limit %d: lost %d, entries %+v\n%q", limit, lost, good, f.data)
			}
			if l.Stats().Written != 4-lost {
				t.Fatalf("limit %d: %+v, lost %d", limit, l.Stats(), lost)
			}
		}
	}
}

// TestDecisionLogOnADiskThatHangs: decisions go on, and Close gives up.
func TestDecisionLogOnADiskThatHangs(t *testing.T) {
	f := &diskFile{limit: 1 << 20, hang: make(chan struct{}), entered: make(chan struct{}, 1)}
	l, err := newDecisionLog(LogOptions{Path: "x", Queue: 4}, func(string) (logFile, int64, error) { return f, 0, nil })
	if err != nil {
		t.Fatal(err)
	}
	e := engineOf(t, pausing("x"), Options{Log: l})
	for i := range 50 {
		if d := e.Decide(context.Background(), finding("high")); d.Err != nil {
			t.Fatal(d.Err)
		}
		if i == 0 {
			<-f.entered
		}
	}
	if s := l.Stats(); s.Dropped != 50-1-4 {
		t.Errorf("%+v", s)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := l.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	close(f.hang)
	closeLog(t, l)
	if s := l.Stats(); s.Written+s.Dropped != 50 {
		t.Errorf("%+v", s)
	}
}

func TestDecisionLogCannotBeOpened(t *testing.T) {
	if _, err := NewDecisionLog(LogOptions{Path: filepath.Join(t.TempDir(), "no", "log")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
