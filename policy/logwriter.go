package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// batchSize is how many bytes are gathered for one write, if as many wait.
const batchSize = 256 << 10

// logFile is the part of *os.File that is used, so that tests can break it.
type logFile interface {
	io.WriteCloser
	Truncate(size int64) error
}

// openLogFile opens path for appending and returns its size. A last line that
// was cut short (by a crash) is ended, so that it does not spoil the next.
func openLogFile(path string) (logFile, int64, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	size := info.Size()
	if size > 0 && info.Mode().IsRegular() {
		var last [1]byte
		if _, err := f.ReadAt(last[:], size-1); err == nil && last[0] != '\n' {
			if n, err := f.Write([]byte{'\n'}); err == nil {
				size += int64(n)
			}
		}
	}
	return f, size, nil
}

// logWriter belongs to the log's goroutine.
type logWriter struct {
	log     *DecisionLog
	open    func(string) (logFile, int64, error)
	f       logFile // nil: to be opened again
	size    int64
	torn    bool // the file ends inside of a line
	failing bool // the last write failed; told once
}

func (w *logWriter) run() {
	defer func() {
		if w.f != nil {
			_ = w.f.Close()
		}
	}()
	for {
		select {
		case line := <-w.log.queue:
			w.write(w.gather(line))
		case <-w.log.stop:
			for {
				select {
				case line := <-w.log.queue:
					w.write(w.gather(line))
				default:
					return
				}
			}
		}
	}
}

// gather returns first and what else waits, up to batchSize.
func (w *logWriter) gather(first []byte) []byte {
	batch := first
	for len(batch) < batchSize {
		select {
		case line := <-w.log.queue:
			batch = append(batch, line...)
		default:
			return batch
		}
	}
	return batch
}

// write appends a batch of whole lines. Lines that do not get onto the disk
// whole are taken off again and counted.
func (w *logWriter) write(batch []byte) {
	if w.size > 0 && w.size+int64(len(batch)) > w.log.opts.MaxBytes {
		w.rotate()
	}
	lines := uint64(bytes.Count(batch, []byte{'\n'}))
	if w.f == nil {
		if err := w.reopen(); err != nil {
			w.fail(err)
			w.log.dropped.Add(lines)
			return
		}
	}
	out := batch
	if w.torn {
		out = append([]byte{'\n'}, batch...)
	}
	n, err := w.f.Write(out)
	if err == nil && n == len(out) {
		w.torn = false
		w.size += int64(n)
		w.log.written.Add(lines)
		if w.failing {
			w.failing = false
			w.log.opts.Logger.Info("decision log is written again", "dropped", w.log.dropped.Load())
		}
		return
	}
	if err == nil {
		err = io.ErrShortWrite
	}
	w.keepWhole(out[:n], lines)
	w.fail(err)
}

// keepWhole counts the whole lines of what was written and cuts off the rest.
func (w *logWriter) keepWhole(written []byte, lines uint64) {
	whole := bytes.LastIndexByte(written, '\n') + 1
	kept := uint64(bytes.Count(written[:whole], []byte{'\n'}))
	if w.torn && kept > 0 {
		kept-- // the newline that ended the torn line
		w.torn = false
	}
	w.log.written.Add(kept)
	w.log.dropped.Add(lines - kept)
	w.size += int64(whole)
	if whole < len(written) {
		if err := w.f.Truncate(w.size); err != nil {
			w.torn = true
			w.size += int64(len(written) - whole)
		}
	}
}

func (w *logWriter) fail(err error) {
	w.log.errors.Add(1)
	if w.failing {
		return
	}
	w.failing = true
	w.log.opts.Logger.Error("decision log is not written", "path", w.log.opts.Path, "err", err)
	if w.log.opts.OnError != nil {
		w.log.opts.OnError(fmt.Errorf("decision log: %w", err))
	}
}

func (w *logWriter) reopen() error {
	f, size, err := w.open(w.log.opts.Path)
	if err != nil {
		return err
	}
	w.f, w.size, w.torn = f, size, false
	return nil
}

// rotate renames Path to Path.1, Path.1 to Path.2 and so on; the oldest is
// replaced. When it cannot, the file grows on: entries are worth more than the
// limit.
func (w *logWriter) rotate() {
	p := w.log.opts.Path
	name := func(i int) string {
		if i == 0 {
			return p
		}
		return fmt.Sprintf("%s.%d", p, i)
	}
	for i := w.log.opts.MaxFiles - 1; i >= 0; i-- {
		if err := os.Rename(name(i), name(i+1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			w.fail(fmt.Errorf("rotate: %w", err))
			return
		}
	}
	if w.f != nil {
		_ = w.f.Close()
	}
	w.f, w.size, w.torn = nil, 0, false
}
