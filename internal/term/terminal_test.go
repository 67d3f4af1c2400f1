package term

import (
	"errors"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/mattn/go-runewidth"
	"golang.org/x/sys/unix"
)

// onTerminal returns what print writes to a terminal of so many columns.
func onTerminal(t *testing.T, columns uint16, print func(*os.File)) string {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	defer ours.Close()
	if err := unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(theirs.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: 24}); err != nil {
		t.Fatal(err)
	}
	done := make(chan string)
	go func() {
		b, err := io.ReadAll(ours)
		if err != nil && !errors.Is(err, unix.EIO) { // what a terminal says when its last user is gone
			t.Error(err)
		}
		done <- string(b)
	}()
	print(theirs)
	theirs.Close()
	return <-done
}

var colours = regexp.MustCompile("\x1b\\[[0-9;]*m")

func printTable(t *testing.T) func(*os.File) {
	return func(f *os.File) {
		tab := NewTable(Column{Title: "PID", Right: true}, Column{Title: "COMM"}, Column{Title: "COMMAND", Flex: true})
		tab.Row("1", "init", "/sbin/init "+strings.Repeat("x", 200))
		tab.Row("2", "wide", strings.Repeat("日本", 40))
		tab.Row("3", strings.Repeat("\x1b", 15), "a name that is four times as long when it is escaped")
		tab.Highlight()
		if err := tab.Print(f); err != nil {
			t.Error(err)
		}
	}
}

func TestTableFitsTheTerminal(t *testing.T) {
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "xterm")
	for _, columns := range []uint16{20, 40, 80, 200} {
		text := onTerminal(t, columns, printTable(t))
		if !colours.MatchString(text) {
			t.Errorf("no colour on a terminal: %q", text)
		}
		lines := strings.Split(strings.TrimRight(text, "\r\n"), "\r\n")
		if len(lines) != 4 {
			t.Errorf("%d lines, want 4: %q", len(lines), text)
		}
		for _, l := range lines {
			if w := runewidth.StringWidth(colours.ReplaceAllString(l, "")); w > int(columns) {
				t.Errorf("%d columns on a terminal of %d: %q", w, columns, l)
			}
		}
	}
}

func TestColourIsNotForced(t *testing.T) {
	for _, env := range [][2]string{{"NO_COLOR", "1"}, {"TERM", "dumb"}} {
		t.Run(env[0], func(t *testing.T) {
			t.Setenv("NO_COLOR", "")
			t.Setenv("TERM", "xterm")
			t.Setenv(env[0], env[1])
			if text := onTerminal(t, 80, printTable(t)); strings.Contains(text, "\x1b") {
				t.Errorf("with %s=%s: %q", env[0], env[1], text)
			}
		})
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	printTable(t)(w)
	w.Close()
	b, err := io.ReadAll(r)
	if err != nil || strings.Contains(string(b), "\x1b") || !strings.Contains(string(b), strings.Repeat("x", 200)) {
		t.Errorf("into a pipe: %q, %v", b, err)
	}
}
