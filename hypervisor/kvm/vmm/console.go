package vmm

import (
	"io"
	"log/slog"
	"sync"
	"time"
)

const (
	// consoleRoom is how much of what a guest prints may wait for its reader. More
	// than that is dropped: a guest must not stand still because a terminal does.
	consoleRoom = 1 << 20
	// consoleFlush is how long the end of a machine waits for its console's reader.
	consoleFlush = time.Second
)

// consoleOut hands what the guest prints to a writer that may block: the vCPU's
// thread, which waits for each byte, never does.
type consoleOut struct {
	to  io.Writer
	log *slog.Logger

	mu      sync.Mutex
	cond    sync.Cond
	waiting []byte
	dropped uint64
	closed  bool
	done    chan struct{} // the writer has ended
}

func newConsoleOut(to io.Writer, log *slog.Logger) *consoleOut {
	c := &consoleOut{to: to, log: log, done: make(chan struct{})}
	c.cond.L = &c.mu
	go c.run()
	return c
}

// Write is io.Writer's. It keeps what there is room for.
func (c *consoleOut) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(len(p), consoleRoom-len(c.waiting))
	c.waiting = append(c.waiting, p[:n]...)
	c.dropped += uint64(len(p) - n)
	c.cond.Signal()
	return len(p), nil
}

func (c *consoleOut) run() {
	defer close(c.done)
	var batch []byte
	for {
		c.mu.Lock()
		for len(c.waiting) == 0 && !c.closed {
			c.cond.Wait()
		}
		batch, c.waiting = c.waiting, batch[:0]
		dropped := c.dropped
		c.dropped = 0
		c.mu.Unlock()
		if dropped > 0 {
			c.log.Warn("console output dropped: its reader is too slow", "bytes", dropped)
		}
		if len(batch) == 0 {
			return
		}
		if _, err := c.to.Write(batch); err != nil {
			c.log.Debug("console output is not read", "error", err)
		}
	}
}

// close writes what waits, and returns when that is done, or its reader takes too
// long: then the writer ends with the process.
func (c *consoleOut) close() {
	c.mu.Lock()
	c.closed = true
	c.cond.Signal()
	c.mu.Unlock()
	select {
	case <-c.done:
	case <-time.After(consoleFlush):
	}
}
