package lab

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"
)

// maxConsole bounds how much of a console is kept, in bytes.
const maxConsole = 64 << 20

// errConsoleEnd is why a wait for a line ends when QEMU has ended.
var errConsoleEnd = errors.New("the console ended (QEMU is gone)")

// console keeps what a guest prints, and lets others wait for lines of it.
type console struct {
	mu      sync.Mutex
	buf     []byte // without carriage returns
	ended   bool
	changed chan struct{} // closed and replaced when buf or ended change
}

func newConsole() *console { return &console{changed: make(chan struct{})} }

// readFrom reads r to its end.
func (c *console) readFrom(r io.Reader) {
	p := make([]byte, 32<<10)
	for {
		n, err := r.Read(p)
		c.mu.Lock()
		for _, b := range p[:n] {
			if b != '\r' && len(c.buf) < maxConsole {
				c.buf = append(c.buf, b)
			}
		}
		if err != nil {
			c.ended = true
		}
		close(c.changed)
		c.changed = make(chan struct{})
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.buf)
}

// size returns how much was printed so far, in bytes: a place to wait from.
func (c *console) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.buf)
}

// wait waits until found returns true for what was printed from byte `from` on
// (complete lines and the beginning of the last one).
func (c *console) wait(ctx context.Context, from int, found func(text string) bool) error {
	for {
		c.mu.Lock()
		text, ended, changed := string(c.buf[min(from, len(c.buf)):]), c.ended, c.changed
		c.mu.Unlock()
		if found(text) {
			return nil
		}
		if ended {
			return errConsoleEnd
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}

// hasLine reports whether text has line as one complete line.
func hasLine(text, line string) bool {
	return strings.HasPrefix(text, line+"\n") || strings.Contains(text, "\n"+line+"\n")
}

// maxTailLine is how much of a line tail shows, in bytes.
const maxTailLine = 200

// tail returns the last n lines of s with control bytes escaped: a guest must
// not write to the terminal of whom reads its console.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	for i, l := range lines {
		if len(l) > maxTailLine {
			l = l[:maxTailLine] + "…"
		}
		q := strconv.QuoteToGraphic(l)
		lines[i] = strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
	}
	return strings.Join(lines, "\n")
}
