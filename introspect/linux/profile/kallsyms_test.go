package profile

import (
	"bytes"
	"testing"
)

func TestNextDigits(t *testing.T) {
	b := bytes.Repeat([]byte{0xee}, 300)
	var want []int
	for _, at := range []int{0, 23, 45, 70, 100, 121, 150, 171, 280} {
		copy(b[at:], digits)
		want = append(want, at)
	}
	var got []int
	for at := nextDigits(b, 0); at >= 0; at = nextDigits(b, at+1) {
		got = append(got, at)
	}
	if len(got) != len(want) {
		t.Fatalf("found at %v, want %v", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("found at %v, want %v", got, want)
		}
	}
	// In a row, and with digits that are none of a token table.
	b = []byte("8\x009\x00" + digits + digits + "0\x001\x002\x003\x004\x005\x006\x007\x008\x00")
	if a, b, c := nextDigits(b, 0), nextDigits(b, 5), nextDigits(b, 25); a != 4 || b != 24 || c != -1 {
		t.Errorf("found at %d, %d, %d", a, b, c)
	}
}
