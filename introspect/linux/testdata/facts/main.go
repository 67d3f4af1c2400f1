// Command facts runs in a guest of the lab. It prints what the guest says of
// itself where busybox cannot: "facts kmsg" all records of /dev/kmsg, as they
// are read, one behind the other; "facts log COUNT" writes that many into it.
package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == "kmsg":
		err = kmsg()
	case len(os.Args) == 3 && os.Args[1] == "log":
		var n int
		if n, err = strconv.Atoi(os.Args[2]); err == nil {
			err = log(n)
		}
	default:
		err = errors.New("usage: facts kmsg | facts log COUNT")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func kmsg() error {
	fd, err := syscall.Open("/dev/kmsg", syscall.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := syscall.Read(fd, buf)
		switch {
		case errors.Is(err, syscall.EAGAIN):
			return nil
		case errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.EINTR): // overwritten: go on with the oldest
			continue
		case err != nil:
			return err
		}
		if _, err := os.Stdout.Write(buf[:n]); err != nil {
			return err
		}
	}
}

// log writes records of all lengths, levels and some facilities, with bytes that
// terminals act on and line breaks among them.
func log(n int) error {
	f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for i := range n {
		priority := i % 200
		if priority%8 == 0 {
			priority++ // of level 0 goes to the console, where the host reads
		}
		text := fmt.Sprintf("<%d>facts %d %s", priority, i, strings.Repeat("x", i*7%180))
		switch i % 50 {
		case 7:
			text += "\x1b[31mred\x07 \\ caf\xc3\xa9 \xff"
		case 8:
			text += "\nsecond line\n\nfourth"
		case 9:
			text = fmt.Sprintf("<%d>\n", priority)
		case 10:
			text += strings.Repeat("y", 600)
		}
		if _, err := f.WriteString(text); err != nil {
			return err
		}
	}
	return nil
}
