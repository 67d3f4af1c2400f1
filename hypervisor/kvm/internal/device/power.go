package device

import (
	"encoding/json"
	"sync"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/bus"
)

// Bits of the PM1 registers (ACPI 6.5, 4.8.3) and what the DSDT's \_S5 says.
const (
	pm1PowerButton = 1 << 8 // PWRBTN_STS, PWRBTN_EN

	pm1SCIEnable   = 1 << 0
	pm1SleepEnable = 1 << 13
	pm1SleepType   = 7 << 10
	// SleepTypeS5 is the SLP_TYP that switches the machine off.
	SleepTypeS5 = 5

	pmTimerHz = 3_579_545
)

// Power is the ACPI power management of a machine: the PM1 event block (4 bytes
// at offset 0), the PM1 control block (2 at 4) and the timer (4 at 8).
type Power struct {
	sci bus.Line
	off func()
	now func() time.Duration // since the machine was made

	mu    sync.Mutex
	s     powerState
	level bool
}

type powerState struct {
	versioned
	Status  uint16 `json:"status"`
	Enable  uint16 `json:"enable"`
	Control uint16 `json:"control"`
	// Timer is what the timer shows more than the machine's own clock, in its ticks.
	Timer uint64 `json:"timer"`
}

// NewPower returns it. off is called, by a vCPU's thread, when the guest switches
// itself off.
func NewPower(sci bus.Line, off func()) *Power {
	start := time.Now()
	return &Power{
		sci: sci, off: off, now: func() time.Duration { return time.Since(start) },
		s: powerState{versioned: versioned{1}, Control: pm1SCIEnable},
	}
}

// Press presses the power button.
func (d *Power) Press() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.s.Status |= pm1PowerButton
	d.interrupt()
}

func (d *Power) interrupt() {
	level := d.s.Status&d.s.Enable&pm1PowerButton != 0
	if level != d.level {
		d.level = level
		d.sci.Set(level)
	}
}

func (d *Power) ticks() uint64 {
	t := d.now()
	return d.s.Timer + uint64(t/time.Second)*pmTimerHz + uint64(t%time.Second)*pmTimerHz/uint64(time.Second)
}

// Read is bus.Handler's.
func (d *Power) Read(offset uint64, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case offset < 4:
		readLE(p, uint64(d.s.Status)|uint64(d.s.Enable)<<16, offset)
	case offset < 8:
		readLE(p, uint64(d.s.Control), offset-4)
	default:
		readLE(p, d.ticks()&0xffff_ffff, offset-8)
	}
}

// Write is bus.Handler's.
func (d *Power) Write(offset uint64, p []byte) {
	d.mu.Lock()
	off := false
	for i, b := range p {
		switch at := offset + uint64(i); at {
		case 0, 1: // a one clears
			d.s.Status &^= uint16(b) << (8 * at)
		case 2, 3:
			shift := 8 * (at - 2)
			d.s.Enable = d.s.Enable&^(0xff<<shift) | uint16(b)<<shift
		case 4, 5:
			shift := 8 * (at - 4)
			d.s.Control = d.s.Control&^(0xff<<shift) | uint16(b)<<shift
			off = off || at == 5 && d.s.Control&pm1SleepEnable != 0 && d.s.Control&pm1SleepType == SleepTypeS5<<10
		}
	}
	d.s.Control = d.s.Control&^pm1SleepEnable | pm1SCIEnable
	d.interrupt()
	d.mu.Unlock()
	if off {
		d.off()
	}
}

// SaveState is bus.Saved's.
func (d *Power) SaveState() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.s
	s.Timer = d.ticks()
	return json.Marshal(s)
}

// RestoreState is bus.Saved's.
func (d *Power) RestoreState(b []byte) error {
	var n powerState
	if err := decodeState("power management", b, &n); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.s = n
	d.s.Timer = 0
	d.s.Timer = n.Timer - d.ticks() // wraps around: the sum is right
	d.interrupt()
	return nil
}
