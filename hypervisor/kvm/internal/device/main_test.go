package device

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// wire is an interrupt line that a test looks at.
type wire struct {
	level  bool
	raised int
}

func (w *wire) Set(level bool) {
	if level && !w.level {
		w.raised++
	}
	w.level = level
}

func in(h interface{ Read(uint64, []byte) }, offset uint64) byte {
	var p [1]byte
	h.Read(offset, p[:])
	return p[0]
}

func out(h interface{ Write(uint64, []byte) }, offset uint64, v byte) {
	h.Write(offset, []byte{v})
}
