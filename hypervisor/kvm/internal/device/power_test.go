package device

import (
	"testing"
	"time"
)

func TestPowerOff(t *testing.T) {
	offs := 0
	d := NewPower(&wire{}, func() { offs++ })
	// As ACPICA does: SLP_TYP first, then with SLP_EN; other types are no power-off.
	d.Write(4, []byte{0x01, SleepTypeS5 << 2})
	d.Write(4, []byte{0x01, 1<<2 | 1<<5})
	if offs != 0 {
		t.Error("switched off by another sleep type, or without SLP_EN")
	}
	d.Write(4, []byte{0x01, SleepTypeS5<<2 | 1<<5})
	if offs != 1 {
		t.Errorf("switched off %d times", offs)
	}
	if in(d, 4)&pm1SCIEnable == 0 {
		t.Error("the machine has left ACPI mode")
	}
}

func TestPowerButton(t *testing.T) {
	w := &wire{}
	d := NewPower(w, func() {})
	d.Press()
	if w.level {
		t.Error("an interrupt that is not enabled")
	}
	out(d, 3, pm1PowerButton>>8)
	if !w.level || in(d, 1) != pm1PowerButton>>8 {
		t.Error("the button is not seen")
	}
	out(d, 1, pm1PowerButton>>8) // writing a one clears
	if w.level || in(d, 1) != 0 {
		t.Error("the button stays pressed")
	}
}

// The timer runs at its frequency, and goes on from where it was saved.
func TestPowerTimer(t *testing.T) {
	d := NewPower(&wire{}, func() {})
	now := time.Duration(0)
	d.now = func() time.Duration { return now }
	read := func(d *Power) uint32 {
		var p [4]byte
		d.Read(8, p[:])
		return uint32(p[0]) | uint32(p[1])<<8 | uint32(p[2])<<16 | uint32(p[3])<<24
	}
	now = 1000 * time.Second
	if got := read(d); got != 1000*pmTimerHz%(1<<32) {
		t.Errorf("after 1,000 s it shows %d", got)
	}
	b, err := d.SaveState()
	if err != nil {
		t.Fatal(err)
	}
	n := NewPower(&wire{}, func() {})
	n.now = func() time.Duration { return 5 * time.Hour }
	if err := n.RestoreState(b); err != nil {
		t.Fatal(err)
	}
	if read(n) != read(d) {
		t.Errorf("restored it shows %d, it was %d", read(n), read(d))
	}
}

func TestResets(t *testing.T) {
	resets := 0
	k, r := NewKeyboard(func() { resets++ }), NewResetPort(func() { resets++ })
	if in(k, keyboardCommand)&3 != 0 {
		t.Error("the controller is busy")
	}
	out(k, 0, pulseReset)
	out(k, keyboardCommand, 0xae)
	out(r, 0, 2)
	if resets != 0 {
		t.Errorf("%d resets by other commands", resets)
	}
	out(k, keyboardCommand, pulseReset)
	out(r, 0, ResetValue)
	if resets != 2 {
		t.Errorf("%d resets", resets)
	}
	var told []PanicKind
	p := NewPanic(func(k PanicKind) { told = append(told, k) })
	if in(p, 0) != 3 {
		t.Errorf("events %#x", in(p, 0))
	}
	out(p, 0, 0)
	out(p, 0, 1)
	out(p, 0, 0xfe)
	if len(told) != 2 || told[0] != PanicDied || told[1] != PanicCrash {
		t.Errorf("told %v", told)
	}
}

func TestClock(t *testing.T) {
	r := NewRTC(3<<30, 5<<30)
	at := time.Date(2031, 2, 28, 23, 59, 58, 0, time.UTC)
	r.now = func() time.Time { return at }
	reg := func(i byte) byte { out(r, 0, i); return in(r, 1) }
	for i, want := range map[byte]byte{
		rtcSeconds: 0x58, rtcMinutes: 0x59, rtcHours: 0x23, rtcDay: 0x28, rtcMonth: 2, rtcYear: 0x31, rtcCentury: 0x20,
		rtcWeekday: 6, rtcA: 0x26, rtcD: 0x80, rtcAbove4G: 0, rtcAbove4G + 1: 0x40, rtcAbove4G + 2: 1,
		rtcAbove16M: 0x00, rtcAbove16M + 1: 0xbf, rtcExtended: 0x00, rtcExtended + 1: 0xfc,
	} {
		if got := reg(i); got != want {
			t.Errorf("register %#x is %#x, want %#x", i, got, want)
		}
	}
	out(r, 0, rtcB)
	out(r, 1, rtcBinary)
	if got := reg(rtcHours); got != 11|0x80 {
		t.Errorf("11 pm is %#x", got)
	}
	// The guest sets its clock; it goes on from there, and is kept.
	out(r, 1, 0)
	out(r, 0, rtcB)
	out(r, 1, rtcBinary|rtc24)
	out(r, 0, rtcHours)
	out(r, 1, 5)
	b, err := r.SaveState()
	if err != nil {
		t.Fatal(err)
	}
	n := NewRTC(3<<30, 5<<30)
	n.now = func() time.Time { return at.Add(time.Hour) }
	if err := n.RestoreState(b); err != nil {
		t.Fatal(err)
	}
	out(n, 0, rtcHours)
	if got := in(n, 1); got != 6 {
		t.Errorf("an hour after it was set to 5 it is %d", got)
	}
}
