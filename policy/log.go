package policy

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/vantage-vmi/vantage/event"
)

// LogOptions of a DecisionLog. Path is required.
type LogOptions struct {
	Path     string
	MaxBytes int64 // of a file before it is rotated; 0 stands for 64 MiB
	MaxFiles int   // rotated files kept, as Path.1 (the newest) and on; 0 stands for 5
	Queue    int   // decisions that wait to be written; 0 stands for 8192
	Input    bool  // write the whole event, not only its digest
	// OnError is told when writing begins to fail; may be nil.
	OnError func(error)
	Logger  *slog.Logger // nil: none
}

// LogEntry is one line of the decision log.
type LogEntry struct {
	Decision
	InputSHA256 string          `json:"input_sha256,omitempty"` // of the event's plain JSON form
	Input       json.RawMessage `json:"input,omitempty"`        // the event
	// Dropped is how many entries were lost before this one, since the log was
	// opened.
	Dropped uint64 `json:"dropped,omitempty"`
}

// LogStats counts what became of decisions given to a DecisionLog.
type LogStats struct {
	Written uint64 `json:"written"`
	Dropped uint64 `json:"dropped"` // the queue or the disk was full, or it was closed
	Errors  uint64 `json:"errors"`  // writes and rotations that failed
}

// DecisionLog writes decisions to a file, one JSON object a line (NDJSON). A
// goroutine writes; a slow or full disk costs entries, which are counted, and
// never time. What was written is with the kernel at once; it is not synced.
type DecisionLog struct {
	opts  LogOptions
	queue chan []byte
	stop  chan struct{}
	done  chan struct{}
	once  sync.Once

	written, dropped, errors atomic.Uint64
}

// NewDecisionLog opens, or makes, the log at opts.Path.
func NewDecisionLog(opts LogOptions) (*DecisionLog, error) {
	return newDecisionLog(opts, openLogFile)
}

func newDecisionLog(opts LogOptions, open func(string) (logFile, int64, error)) (*DecisionLog, error) {
	if opts.MaxBytes <= 0 {
		opts.MaxBytes = 64 << 20
	}
	if opts.MaxFiles <= 0 {
		opts.MaxFiles = 5
	}
	if opts.Queue <= 0 {
		opts.Queue = 8192
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	l := &DecisionLog{
		opts:  opts,
		queue: make(chan []byte, opts.Queue),
		stop:  make(chan struct{}),
		done:  make(chan struct{}),
	}
	w := &logWriter{log: l, open: open}
	if err := w.reopen(); err != nil {
		return nil, fmt.Errorf("decision log: %w", err)
	}
	go func() {
		defer close(l.done)
		w.run()
	}()
	return l, nil
}

// Stats returns the counts up to now.
func (l *DecisionLog) Stats() LogStats {
	return LogStats{Written: l.written.Load(), Dropped: l.dropped.Load(), Errors: l.errors.Load()}
}

// Close writes what waits and closes the file. It returns ctx's error when that
// takes too long (a disk that hangs); the goroutine ends when the disk does.
func (l *DecisionLog) Close(ctx context.Context) error {
	l.once.Do(func() { close(l.stop) })
	select {
	case <-l.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close decision log: %w", ctx.Err())
	}
}

// add never blocks.
func (l *DecisionLog) add(d *Decision, input []byte) {
	entry := LogEntry{Decision: *d, Dropped: l.dropped.Load()}
	if input != nil {
		entry.InputSHA256 = inputDigest(input)
		if l.opts.Input {
			entry.Input = input
		}
	}
	b, err := event.MarshalLine(&entry)
	if err != nil {
		l.errors.Add(1)
		l.dropped.Add(1)
		return
	}
	select {
	case <-l.stop:
		l.dropped.Add(1)
		return
	default:
	}
	select {
	case l.queue <- append(b, '\n'):
	default:
		l.dropped.Add(1)
	}
}
