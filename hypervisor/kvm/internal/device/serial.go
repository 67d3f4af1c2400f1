package device

import (
	"encoding/json"
	"io"
	"sync"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/bus"
)

// Registers of a 16550A by their offset, and their bits (Documentation of the
// National Semiconductor PC16550D; include/uapi/linux/serial_reg.h).
const (
	serialRX  = 0 // and TX, and with serialDLAB the divisor's low byte
	serialIER = 1 // and with serialDLAB the divisor's high byte
	serialIIR = 2 // and FCR
	serialLCR = 3
	serialMCR = 4
	serialLSR = 5
	serialMSR = 6
	serialSCR = 7

	serialDLAB   = 0x80
	ierRX        = 0x01 // UART_IER_RDI
	ierTX        = 0x02 // UART_IER_THRI
	iirNone      = 0x01 // UART_IIR_NO_INT
	iirTX        = 0x02 // UART_IIR_THRI
	iirRX        = 0x04 // UART_IIR_RDI
	iirFIFO      = 0xc0
	fcrEnable    = 0x01
	fcrClearRX   = 0x02
	mcrOut2      = 0x08 // lets interrupts out
	mcrLoop      = 0x10
	lsrData      = 0x01 // UART_LSR_DR
	lsrEmpty     = 0x60 // UART_LSR_THRE | UART_LSR_TEMT
	msrConnected = 0xb0 // DCD, DSR, CTS: someone listens
	serialFIFO   = 16
	serialInput  = 64 << 10 // bytes that wait for the guest
)

// Serial is a 16550A. What the guest sends goes to a writer at once; what is
// typed waits until the guest has taken it.
type Serial struct {
	line bus.Line
	out  io.Writer

	mu      sync.Mutex
	s       serialState
	typed   []byte // waits for room in the FIFO
	level   bool
	dropped uint64
}

// serialState is what the guest sees of it.
type serialState struct {
	versioned
	Divisor uint16 `json:"divisor"`
	IER     byte   `json:"ier"`
	FCR     byte   `json:"fcr"`
	LCR     byte   `json:"lcr"`
	MCR     byte   `json:"mcr"`
	SCR     byte   `json:"scr"`
	RX      []byte `json:"rx"`      // at most serialFIFO bytes
	TXIdle  bool   `json:"tx_idle"` // the interrupt of an empty transmitter is pending
}

// NewSerial returns a serial port. out gets each byte as it is sent, must not
// block for long, and may be nil.
func NewSerial(line bus.Line, out io.Writer) *Serial {
	return &Serial{line: line, out: out, s: serialState{versioned: versioned{1}, Divisor: 12}}
}

// Type gives the guest bytes to read, and returns how many were taken: a guest
// that does not read has no more than 64 KiB waiting.
func (s *Serial) Type(p []byte) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := min(len(p), serialInput-len(s.typed))
	s.typed = append(s.typed, p[:n]...)
	s.refill()
	return n
}

func (s *Serial) refill() {
	depth := 1
	if s.s.FCR&fcrEnable != 0 {
		depth = serialFIFO
	}
	if s.s.MCR&mcrLoop == 0 {
		n := min(len(s.typed), max(0, depth-len(s.s.RX)))
		s.s.RX = append(s.s.RX, s.typed[:n]...)
		s.typed = s.typed[n:]
	}
	s.interrupt()
}

func (s *Serial) interrupt() {
	level := s.pending() != iirNone && s.s.MCR&mcrOut2 != 0
	if level != s.level {
		s.level = level
		s.line.Set(level)
	}
}

func (s *Serial) pending() byte {
	switch {
	case s.s.IER&ierRX != 0 && len(s.s.RX) > 0:
		return iirRX
	case s.s.IER&ierTX != 0 && s.s.TXIdle:
		return iirTX
	}
	return iirNone
}

// Read is bus.Handler's.
func (s *Serial) Read(offset uint64, p []byte) {
	fill(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case offset == serialRX && s.s.LCR&serialDLAB != 0:
		p[0] = byte(s.s.Divisor)
	case offset == serialIER && s.s.LCR&serialDLAB != 0:
		p[0] = byte(s.s.Divisor >> 8)
	case offset == serialRX:
		p[0] = 0
		if len(s.s.RX) > 0 {
			p[0] = s.s.RX[0]
			s.s.RX = s.s.RX[1:]
		}
		s.refill()
	case offset == serialIER:
		p[0] = s.s.IER
	case offset == serialIIR:
		p[0] = s.pending()
		if p[0] == iirTX {
			s.s.TXIdle = false // reading it acknowledges this one
			s.interrupt()
		}
		if s.s.FCR&fcrEnable != 0 {
			p[0] |= iirFIFO
		}
	case offset == serialLCR:
		p[0] = s.s.LCR
	case offset == serialMCR:
		p[0] = s.s.MCR
	case offset == serialLSR:
		p[0] = lsrEmpty
		if len(s.s.RX) > 0 {
			p[0] |= lsrData
		}
	case offset == serialMSR:
		p[0] = msrConnected
		if m := s.s.MCR; m&mcrLoop != 0 { // the outputs come back as inputs
			p[0] = m&0x0c<<4 | m&0x02<<3 | m&0x01<<5
		}
	case offset == serialSCR:
		p[0] = s.s.SCR
	}
}

// Write is bus.Handler's.
func (s *Serial) Write(offset uint64, p []byte) {
	v := p[0]
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case offset == serialRX && s.s.LCR&serialDLAB != 0:
		s.s.Divisor = s.s.Divisor&0xff00 | uint16(v)
	case offset == serialIER && s.s.LCR&serialDLAB != 0:
		s.s.Divisor = s.s.Divisor&0x00ff | uint16(v)<<8
	case offset == serialRX:
		s.send(v)
	case offset == serialIER:
		// Switching the interrupt on while the transmitter is empty raises it.
		if v&ierTX != 0 && s.s.IER&ierTX == 0 {
			s.s.TXIdle = true
		}
		s.s.IER = v & 0x0f
	case offset == serialIIR:
		s.s.FCR = v & 0xc9
		if v&fcrClearRX != 0 {
			s.s.RX = nil
		}
	case offset == serialLCR:
		s.s.LCR = v
	case offset == serialMCR:
		s.s.MCR = v & 0x1f
	case offset == serialSCR:
		s.s.SCR = v
	}
	s.refill()
}

func (s *Serial) send(v byte) {
	s.s.TXIdle = true
	if s.s.MCR&mcrLoop != 0 {
		if len(s.s.RX) < serialFIFO {
			s.s.RX = append(s.s.RX, v)
		}
		return
	}
	if s.out != nil {
		if _, err := s.out.Write([]byte{v}); err != nil {
			s.dropped++
		}
	}
}

// SaveState is bus.Saved's.
func (s *Serial) SaveState() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return json.Marshal(s.s)
}

// RestoreState is bus.Saved's.
func (s *Serial) RestoreState(b []byte) error {
	var n serialState
	if err := decodeState("serial port", b, &n); err != nil {
		return err
	}
	n.RX = n.RX[:min(len(n.RX), serialFIFO)]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.s = n
	s.interrupt()
	return nil
}
