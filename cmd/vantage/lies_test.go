package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/image"
	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/introspect/linux"
)

// liar is a copy of a real guest's memory in which a test tells lies.
type liar struct {
	t     *testing.T
	path  string
	guest *linux.Guest
	procs []linux.Process
}

func newLiar(t *testing.T) *liar {
	t.Helper()
	g := infected(t, lab.PC, true, true)
	path := filepath.Join(t.TempDir(), "liar.raw")
	if err := g.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	ram, err := g.RAMFile()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(ram)
	if rerr := g.Resume(t.Context()); err != nil || rerr != nil {
		t.Fatal(err, rerr)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	vm, err := image.New(image.Options{}).Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.Close() })
	l := &liar{t: t, path: path}
	if l.guest, err = linux.Open(t.Context(), vm, linux.Options{}); err != nil {
		t.Fatal(err)
	}
	list, err := l.guest.Processes(t.Context(), linux.ProcessOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l.procs = list.Processes
	return l
}

// write puts bytes at a kernel address.
func (l *liar) write(va hypervisor.VirtAddr, b []byte) {
	l.t.Helper()
	f, err := os.OpenFile(l.path, os.O_WRONLY, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	for len(b) > 0 {
		m, err := l.guest.KernelSpace().Translate(va)
		if err != nil {
			l.t.Fatal(err)
		}
		n := min(len(b), hypervisor.PageSize-int(va.Offset()))
		if _, err := f.WriteAt(b[:n], int64(m.At(va))); err != nil {
			l.t.Fatal(err)
		}
		b, va = b[n:], va+hypervisor.VirtAddr(n)
	}
}

func (l *liar) symbol(name string) hypervisor.VirtAddr {
	l.t.Helper()
	va, err := l.guest.Kernel().Symbol(name)
	if err != nil {
		l.t.Fatal(err)
	}
	return va
}

// cutKallsyms blanks the table of tokens that names are made of, and what follows
// it. The table has no symbol of its own; it is known by its run of digits.
func (l *liar) cutKallsyms() {
	l.t.Helper()
	start, end := l.symbol("_text"), l.symbol("_end")
	b := make([]byte, end-start)
	if _, err := l.guest.KernelSpace().ReadVirt(b, start); err != nil {
		l.t.Logf("the kernel's image is not all mapped: %v", err)
	}
	digits := []byte("0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00")
	found := 0
	for off := 0; ; found++ {
		i := bytes.Index(b[off:], digits)
		if i < 0 {
			break
		}
		off += i
		l.write(start+hypervisor.VirtAddr(off), make([]byte, hypervisor.PageSize))
		off += len(digits)
	}
	if found == 0 {
		l.t.Fatal("no table of tokens in the kernel's image")
	}
}

// tasks returns the address of the i-th process's link in the task list.
func (l *liar) tasks(i int) hypervisor.VirtAddr {
	l.t.Helper()
	f, err := l.guest.Kernel().Types.Field("task_struct.tasks")
	if err != nil {
		l.t.Fatal(err)
	}
	return l.procs[i].KernelAddress + hypervisor.VirtAddr(f.Offset)
}

func pointer(v hypervisor.VirtAddr) []byte {
	return binary.LittleEndian.AppendUint64(nil, uint64(v))
}

func TestAGuestThatLiesEndsNoCommandBadly(t *testing.T) {
	for _, c := range []struct {
		name string
		lie  func(*liar)
		ps   int    // status of `vantage ps`
		says string // of its stderr
	}{
		{"task list with a cycle", func(l *liar) { l.write(l.tasks(20), pointer(l.tasks(10))) }, exitIncomplete, "cycle"},
		{"task list with a wild pointer", func(l *liar) { l.write(l.tasks(20), pointer(0x4141414141414141)) }, exitIncomplete, "wild pointer"},
		{"task list into nowhere", func(l *liar) { l.write(l.tasks(20), pointer(0xffffffffff000000)) }, exitIncomplete, "list of processes"},
		{"kallsyms cut short", (*liar).cutKallsyms, exitFailed, "kallsyms"},
		{"type information with huge counts", func(l *liar) {
			va := l.symbol("__start_BTF")
			l.write(va+8, bytes.Repeat([]byte{0xff}, 16)) // type_off, type_len, str_off, str_len
		}, exitFailed, "BTF"},
		{"no type information", func(l *liar) { l.write(l.symbol("__start_BTF"), make([]byte, 24)) }, exitFailed, "BTF"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLiar(t)
			c.lie(l)
			for _, args := range [][]string{
				{"ps", l.path}, {"ps", l.path, "--threads"}, {"info", l.path}, {"modules", l.path}, {"files", l.path}, {"maps", l.path, "--pid", "1"},
				{"sockets", l.path},
				{"scan", l.path}, {"scan", l.path, "--physical"},
			} {
				status, stderr := l.run(args)
				if args[0] == "ps" && (status != c.ps || !strings.Contains(stderr, c.says)) {
					t.Errorf("%v: status %d, want %d and a word of %q: %s", args, status, c.ps, c.says, stderr)
				}
				if args[len(args)-1] == "--physical" && status != exitFound {
					t.Errorf("%v: status %d, want %d whatever the guest's lists say: %s", args, status, exitFound, stderr)
				}
				if strings.Contains(stderr, "goroutine ") {
					t.Errorf("%v: %s", args, stderr)
				}
			}
		})
	}
}

// run runs a command that must come to its end by itself.
func (l *liar) run(args []string) (status int, stderr string) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	var errs bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: io.Discard, stderr: &errs, version: "test"}
	status = a.run(ctx, append(args, "--cache-dir", ""))
	if ctx.Err() != nil {
		l.t.Errorf("%v did not end within a minute", args)
	}
	return status, errs.String()
}
