package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/launch"
)

// escapeKey is Ctrl-A: what follows it is for us.
const escapeKey = 'a' & 0x1f

// terminal is where a machine's console is.
type terminal struct {
	stdin   *os.File
	raw     *term.State // of a terminal that was set to raw mode; nil: none
	in      *os.File    // to the machine; nil: no one types
	closers []func() error
	once    sync.Once
}

// openConsole opens what --console says, and gives the machine its side.
func (a *app) openConsole(o *runOptions, lo *launch.Options) (*terminal, error) {
	t := &terminal{stdin: os.Stdin}
	if path, ok := strings.CutPrefix(o.console, "file:"); ok {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return nil, fmt.Errorf("--console: %w", err)
		}
		lo.Console = f
		t.closers = append(t.closers, f.Close)
		return t, nil
	}
	if o.console != "stdio" {
		return t, nil
	}
	lo.Console = os.Stdout
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("--console: %w", err)
	}
	lo.Input, t.in = r, w
	t.closers = append(t.closers, r.Close)
	return t, nil
}

// follow types on the machine's console what is typed here, until the machine or
// ctx ends; ctx's end asks the guest to power off.
func (t *terminal) follow(ctx context.Context, p *launch.Process) {
	context.AfterFunc(ctx, p.PowerOff)
	if t.in == nil {
		return
	}
	if fd := int(t.stdin.Fd()); term.IsTerminal(fd) {
		if old, err := term.MakeRaw(fd); err == nil {
			t.raw = old
		}
	}
	go func() { // ends with this process: nothing else ends a read of a terminal
		defer t.in.Close()
		keys := keyboard{escapes: t.raw != nil}
		var b [256]byte
		for {
			n, err := t.stdin.Read(b[:])
			typed, asked := keys.read(b[:n])
			if asked {
				p.PowerOff()
			}
			if _, werr := t.in.Write(typed); werr != nil || err != nil {
				return
			}
		}
	}()
}

// keyboard takes the escapes out of what is typed.
type keyboard struct {
	escapes bool // Ctrl-A is one
	escaped bool // the last key was it
}

// read returns what is for the guest, and whether the machine's end is asked for.
func (k *keyboard) read(b []byte) (typed []byte, asked bool) {
	for _, c := range b {
		switch {
		case !k.escapes:
			typed = append(typed, c)
		case !k.escaped && c == escapeKey:
			k.escaped = true
		case k.escaped && c == 'x':
			k.escaped, asked = false, true
		case k.escaped:
			k.escaped = false
			typed = append(typed, c)
		default:
			typed = append(typed, c)
		}
	}
	return typed, asked
}

// close puts the terminal back.
func (t *terminal) close() (err error) {
	t.once.Do(func() {
		if t.raw != nil {
			err = term.Restore(int(t.stdin.Fd()), t.raw)
		}
		for _, f := range t.closers {
			err = errors.Join(err, f())
		}
	})
	return err
}
