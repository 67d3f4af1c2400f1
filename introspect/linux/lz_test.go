package linux

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// What no page of a guest's test has: each instruction at its edges, by hand.
func TestLZ4Blocks(t *testing.T) {
	long := append([]byte{0xf0, 255, 255, 10}, bytes.Repeat([]byte{7}, 15+255+255+10)...)
	for _, c := range []struct{ src, want string }{
		{"\x30abc", "abc"},
		{"\x1fa\x01\x00\x02\x10b", "a" + strings.Repeat("a", 15+2+4) + "b"}, // overlapping
		{"\x22ab\x02\x00\x10c", "ab" + "ababab" + "c"},
		{string(long), strings.Repeat("\x07", 535)},
	} {
		dst := make([]byte, 1000)
		n, err := lz4Decode(dst, []byte(c.src))
		if err != nil || string(dst[:n]) != c.want {
			t.Errorf("%q: %q, %v, want %q", c.src, dst[:n], err, c.want)
		}
	}
	for _, src := range []string{"", "\x30ab", "\x10a\x00\x00", "\x10a\x02\x00", "\x10a\x01", "\xf0", "\xf0\xff", "\x1fa\x01\x00\xff\xff\xff\xff"} {
		if n, err := lz4Decode(make([]byte, 64), []byte(src)); !errors.Is(err, errLZ) {
			t.Errorf("%q: %d, %v", src, n, err)
		}
	}
}

func TestLZO(t *testing.T) {
	end := "\x11\x00\x00"
	for _, c := range []struct{ src, want string }{
		{"\x15abcd" + end, "abcd"}, // 17 + 4 literals first
		{"\x15abcd" + "\x6d\x00" + "x" + end, "abcd" + "aaaa"[:0] + "abcd"[0:4] + "x"},
		{"\x01abcd" + end, "abcd"}, // a run of 1 + 3 literals
		{"\x00\x01" + strings.Repeat("q", 19) + end, strings.Repeat("q", 19)}, // a long one
		{"\x11\x01\x15abcd" + "\x18\xfc\xff\x01" + end, "abcd" + strings.Repeat("\x00", 12)},
		{"\x15abcd" + "\x22\x0c\x00" + end, "abcd" + "abcd"},
	} {
		dst := make([]byte, 100)
		n, err := lzoDecode(dst, []byte(c.src))
		if err != nil || string(dst[:n]) != c.want {
			t.Errorf("%q: %q, %v, want %q", c.src, dst[:n], err, c.want)
		}
	}
	for _, src := range []string{"", "\x11\x00", "\x15abc", "\x15abcd", "\x15abcd\x6c\xff" + end, "\x00\x00\x00\x00", "\x15abcd\x12\x00\x00"} {
		if n, err := lzoDecode(make([]byte, 64), []byte(src)); !errors.Is(err, errLZ) {
			t.Errorf("%q: %d, %v", src, n, err)
		}
	}
}

func FuzzSwapDecode(f *testing.F) {
	for i, algorithm := range []string{"lzo", "lzo-rle", "lz4", "zstd", "deflate", "842"} {
		f.Add(uint8(i), []byte("\x15abcd\x11\x00\x00"+algorithm))
	}
	f.Add(uint8(1), []byte("\x11\x01\x15abcd\x18\xfc\xff\x01\x11\x00\x00"))
	f.Add(uint8(2), []byte("\x1fa\x01\x00\x02\x10b"))
	var d swapDecoder
	f.Fuzz(func(t *testing.T, kind uint8, src []byte) {
		algorithms := []string{"lzo", "lzo-rle", "lz4", "zstd", "deflate", "842"}
		page := make([]byte, 4096+8)
		canary := page[4096:]
		copy(canary, "unharmed")
		err := d.decode(page[:4096:4096], src, algorithms[int(kind)%len(algorithms)])
		if string(canary) != "unharmed" {
			t.Fatal("written behind the page")
		}
		_ = err
	})
}
