package device

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

// What Linux's 8250 driver does to tell a 16550A and whether its interrupt works.
func TestSerialProbe(t *testing.T) {
	w := &wire{}
	s := NewSerial(w, nil)
	out(s, serialSCR, 0xa5)
	if in(s, serialSCR) != 0xa5 {
		t.Error("no scratch register")
	}
	out(s, serialIIR, fcrEnable)
	if in(s, serialIIR)>>6 != 3 {
		t.Error("no FIFO")
	}
	out(s, serialMCR, mcrLoop|0x0a)
	if got := in(s, serialMSR) & 0xf0; got != 0x90 {
		t.Errorf("in loopback the modem's lines are %#x", got)
	}
	out(s, serialMCR, mcrOut2)
	out(s, serialLCR, serialDLAB)
	out(s, serialRX, 1)
	out(s, serialIER, 2)
	if in(s, serialRX) != 1 || in(s, serialIER) != 2 {
		t.Error("the divisor is not kept")
	}
	out(s, serialLCR, 3)
	out(s, serialIER, ierTX)
	if !w.level || in(s, serialIIR)&0xf != iirTX || w.level {
		t.Error("an empty transmitter raises its interrupt once, until it is read")
	}
}

func TestSerialOutput(t *testing.T) {
	var got bytes.Buffer
	w := &wire{}
	s := NewSerial(w, &got)
	out(s, serialMCR, mcrOut2)
	out(s, serialIER, ierTX)
	for _, c := range []byte("hello\n") {
		if in(s, serialLSR)&lsrEmpty != lsrEmpty {
			t.Fatal("the transmitter is never full")
		}
		out(s, serialRX, c)
		if !w.level {
			t.Fatal("no interrupt when it is empty again")
		}
		in(s, serialIIR)
	}
	if got.String() != "hello\n" {
		t.Errorf("%q", got.String())
	}
	s = NewSerial(w, failing{})
	out(s, serialRX, 'x') // must not stop the guest
	if s.dropped != 1 {
		t.Errorf("%d bytes dropped", s.dropped)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("full") }

// All that is typed arrives, in order, whatever the FIFO's depth; and no more is
// kept than the bound.
func TestSerialInput(t *testing.T) {
	w := &wire{}
	s := NewSerial(w, nil)
	out(s, serialIIR, fcrEnable)
	out(s, serialMCR, mcrOut2)
	out(s, serialIER, ierRX)
	text := strings.Repeat("0123456789", 100)
	if n := s.Type([]byte(text)); n != len(text) {
		t.Fatalf("%d bytes taken", n)
	}
	var got strings.Builder
	for w.level {
		if in(s, serialIIR)&0xf != iirRX || in(s, serialLSR)&lsrData == 0 {
			t.Fatal("an interrupt without data")
		}
		got.WriteByte(in(s, serialRX))
	}
	if got.String() != text {
		t.Errorf("%d bytes came, want %d", got.Len(), len(text))
	}
	if n := s.Type(make([]byte, 2*serialInput)); n > serialInput || n < serialInput-serialFIFO {
		t.Errorf("%d bytes are kept for a guest that does not read", n)
	}
}

func TestSerialState(t *testing.T) {
	w := &wire{}
	s := NewSerial(w, nil)
	out(s, serialMCR, mcrOut2)
	out(s, serialIER, ierRX)
	s.Type([]byte("x"))
	b, err := s.SaveState()
	if err != nil {
		t.Fatal(err)
	}
	w2 := &wire{}
	n := NewSerial(w2, nil)
	if err := n.RestoreState(b); err != nil {
		t.Fatal(err)
	}
	if !w2.level || in(n, serialRX) != 'x' || w2.level {
		t.Error("what waited to be read is lost")
	}
	for _, bad := range []string{"", "{}", `{"version":2}`, `{"version":1,"rx":5}`} {
		if err := n.RestoreState([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// FuzzRegisters lets all devices of this package see any accesses and states.
func FuzzRegisters(f *testing.F) {
	f.Add([]byte("\x00\x41\x81\x01\x02\x03"), []byte(`{"version":1,"rx":"AAAA","cmos":"AA=="}`))
	f.Fuzz(func(t *testing.T, accesses, state []byte) {
		var sent bytes.Buffer
		calls := 0
		count := func() { calls++ }
		devices := []struct {
			size uint64
			d    interface {
				Read(uint64, []byte)
				Write(uint64, []byte)
			}
		}{
			{8, NewSerial(&wire{}, &sent)}, {12, NewPower(&wire{}, count)}, {2, NewRTC(1<<30, 1<<32)},
			{5, NewKeyboard(count)}, {1, NewResetPort(count)}, {1, NewPanic(func(PanicKind) { calls++ })},
		}
		for _, d := range devices {
			if r, ok := d.d.(interface{ RestoreState([]byte) error }); ok && len(state) > 0 {
				_ = r.RestoreState(state)
			}
		}
		for ; len(accesses) >= 4; accesses = accesses[4:] {
			d := devices[int(accesses[0])%len(devices)]
			size := uint64(1) << (accesses[1] & 3)
			if size > d.size {
				size = 1
			}
			offset := uint64(accesses[1]>>2) % (d.size - size + 1)
			var p [8]byte
			binary.LittleEndian.PutUint16(p[:], binary.LittleEndian.Uint16(accesses[2:]))
			if accesses[1]&0x80 != 0 {
				d.d.Write(offset, p[:size])
			} else {
				d.d.Read(offset, p[:size])
			}
		}
		if s := devices[0].d.(*Serial); len(s.s.RX) > serialFIFO {
			t.Errorf("%d bytes in the FIFO", len(s.s.RX))
		}
	})
}
