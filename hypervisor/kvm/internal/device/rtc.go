package device

import (
	"encoding/json"
	"sync"
	"time"
)

// Registers of a mc146818 (Motorola MC146818 data sheet;
// include/linux/mc146818rtc.h).
const (
	rtcSeconds  = 0x00
	rtcMinutes  = 0x02
	rtcHours    = 0x04
	rtcWeekday  = 0x06
	rtcDay      = 0x07
	rtcMonth    = 0x08
	rtcYear     = 0x09
	rtcA        = 0x0a
	rtcB        = 0x0b
	rtcC        = 0x0c
	rtcD        = 0x0d
	rtcExtended = 0x17 // memory between 1 and 64 MiB in KiB; 0x30 again
	rtcAbove16M = 0x34 // memory between 16 MiB and 4 GiB in units of 64 KiB
	rtcAbove4G  = 0x5b // memory above 4 GiB in units of 64 KiB, 3 bytes
	rtcCentury  = 0x32

	rtcBinary = 1 << 2 // of B: no BCD
	rtc24     = 1 << 1 // of B: hours up to 23
	rtcValid  = 1 << 7 // of D
)

// RTC is a mc146818 real-time clock with its CMOS memory, at ports 0x70 and 0x71.
// It tells the host's time in UTC; it has no alarm and no periodic interrupt.
type RTC struct {
	now func() time.Time

	mu sync.Mutex
	s  rtcState
}

type rtcState struct {
	versioned
	Index byte   `json:"index"`
	CMOS  []byte `json:"cmos"` // 128 bytes
	// Offset is what the guest's clock is ahead of the host's, in nanoseconds: the
	// guest has set it.
	Offset time.Duration `json:"offset"`
}

// NewRTC returns a clock whose CMOS memory tells the size of low and high memory
// in bytes, as firmware of PCs does.
func NewRTC(low, high uint64) *RTC {
	r := &RTC{now: time.Now, s: rtcState{versioned: versioned{1}, CMOS: make([]byte, 128)}}
	c := r.s.CMOS
	c[rtcA], c[rtcB], c[rtcD] = 0x26, rtc24, rtcValid
	const mib = 1 << 20
	extended := min(max(low, mib)-mib, 63*mib) >> 10
	above16 := (max(low, 16*mib) - 16*mib) >> 16
	for at, v := range map[int]uint64{rtcExtended: extended, 0x30: extended, rtcAbove16M: above16} {
		c[at], c[at+1] = byte(v), byte(v>>8)
	}
	c[rtcAbove4G], c[rtcAbove4G+1], c[rtcAbove4G+2] = byte(high>>16), byte(high>>24), byte(high>>32)
	return r
}

// Read is bus.Handler's.
func (r *RTC) Read(offset uint64, p []byte) {
	fill(p)
	r.mu.Lock()
	defer r.mu.Unlock()
	if offset == 0 {
		return // the index cannot be read
	}
	p[0] = r.register(r.s.Index)
}

func (r *RTC) register(i byte) byte {
	t := r.now().UTC().Add(r.s.Offset)
	var v int
	switch i {
	case rtcSeconds:
		v = t.Second()
	case rtcMinutes:
		v = t.Minute()
	case rtcHours:
		if v = t.Hour(); r.s.CMOS[rtcB]&rtc24 == 0 {
			pm := v >= 12
			v = (v+11)%12 + 1
			if pm {
				return r.encode(v) | 0x80
			}
		}
	case rtcWeekday:
		v = int(t.Weekday()) + 1
	case rtcDay:
		v = t.Day()
	case rtcMonth:
		v = int(t.Month())
	case rtcYear:
		v = t.Year() % 100
	case rtcCentury:
		v = t.Year() / 100
	case rtcC:
		return 0
	default:
		return r.s.CMOS[i]
	}
	return r.encode(v)
}

func (r *RTC) encode(v int) byte {
	if r.s.CMOS[rtcB]&rtcBinary == 0 {
		v = v/10<<4 | v%10
	}
	return byte(v)
}

func (r *RTC) decode(b byte) int {
	if r.s.CMOS[rtcB]&rtcBinary == 0 {
		return int(b>>4)*10 + int(b&15)
	}
	return int(b)
}

// Write is bus.Handler's.
func (r *RTC) Write(offset uint64, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if offset == 0 {
		r.s.Index = p[0] & 0x7f
		return
	}
	switch i := r.s.Index; i {
	case rtcSeconds, rtcMinutes, rtcHours, rtcDay, rtcMonth, rtcYear, rtcCentury:
		r.set(i, r.decode(p[0]))
	case rtcWeekday, rtcC, rtcD:
	case rtcA:
		r.s.CMOS[i] = p[0] &^ 0x80 // no update is ever in progress
	default:
		r.s.CMOS[i] = p[0]
	}
}

// set moves the clock so that one of its fields has another value.
func (r *RTC) set(i byte, v int) {
	host := r.now().UTC()
	t := host.Add(r.s.Offset)
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	switch i {
	case rtcSeconds:
		second = v
	case rtcMinutes:
		minute = v
	case rtcHours:
		hour = v
	case rtcDay:
		day = v
	case rtcMonth:
		month = time.Month(v)
	case rtcYear:
		year = year/100*100 + v%100
	case rtcCentury:
		year = v%100*100 + year%100
	}
	r.s.Offset = time.Date(year, month, day, hour, minute, second, t.Nanosecond(), time.UTC).Sub(host)
}

// SaveState is bus.Saved's.
func (r *RTC) SaveState() ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return json.Marshal(r.s)
}

// RestoreState is bus.Saved's.
func (r *RTC) RestoreState(b []byte) error {
	var n rtcState
	if err := decodeState("real-time clock", b, &n); err != nil {
		return err
	}
	c := make([]byte, 128)
	copy(c, n.CMOS)
	n.CMOS, n.Index = c, n.Index&0x7f
	r.mu.Lock()
	defer r.mu.Unlock()
	r.s = n
	return nil
}
