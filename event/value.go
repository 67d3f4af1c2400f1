package event

import (
	"fmt"
	"strconv"
	"time"
)

// TimeLayout is RFC 3339 with all nine digits of the nanoseconds, so that times
// sort as text.
const TimeLayout = "2006-01-02T15:04:05.000000000Z"

// Time is a moment, written in UTC as TimeLayout says.
type Time struct{ time.Time }

// At returns t as an event's time.
func At(t time.Time) Time { return Time{t.UTC().Round(0)} }

func (t Time) String() string { return t.UTC().Format(TimeLayout) }

// MarshalText writes t as TimeLayout says. It returns an error for years that
// RFC 3339 cannot hold.
func (t Time) MarshalText() ([]byte, error) {
	if y := t.UTC().Year(); y < 0 || y > 9999 {
		return nil, fmt.Errorf("time: year %d is outside of RFC 3339", y)
	}
	return t.UTC().AppendFormat(nil, TimeLayout), nil
}

// MarshalJSON writes t as a JSON string.
func (t Time) MarshalJSON() ([]byte, error) {
	b, err := t.MarshalText()
	if err != nil {
		return nil, err
	}
	return append(append([]byte{'"'}, b...), '"'), nil
}

// UnmarshalText reads any RFC 3339 time.
func (t *Time) UnmarshalText(b []byte) error {
	v, err := time.Parse(time.RFC3339Nano, string(b))
	if err != nil {
		return fmt.Errorf("time: not RFC 3339: %w", err)
	}
	*t = At(v)
	return nil
}

// UnmarshalJSON reads a JSON string that holds an RFC 3339 time.
func (t *Time) UnmarshalJSON(b []byte) error {
	s, err := strconv.Unquote(string(b))
	if err != nil {
		return fmt.Errorf("time: not a string: %w", err)
	}
	return t.UnmarshalText([]byte(s))
}

// VirtAddr is a guest-virtual address. It is written as 0x-prefixed
// hexadecimal: JSON numbers lose the low bits of 64-bit addresses.
type VirtAddr uint64

// PhysAddr is a guest-physical address, written as VirtAddr is.
type PhysAddr uint64

// MarshalText writes a as 0x-prefixed hexadecimal.
func (a VirtAddr) MarshalText() ([]byte, error) { return hexText(uint64(a)), nil }

// UnmarshalText reads what MarshalText wrote.
func (a *VirtAddr) UnmarshalText(b []byte) error {
	v, err := parseHex(b)
	*a = VirtAddr(v)
	return err
}

// MarshalText writes a as 0x-prefixed hexadecimal.
func (a PhysAddr) MarshalText() ([]byte, error) { return hexText(uint64(a)), nil }

// UnmarshalText reads what MarshalText wrote.
func (a *PhysAddr) UnmarshalText(b []byte) error {
	v, err := parseHex(b)
	*a = PhysAddr(v)
	return err
}

func hexText(v uint64) []byte { return strconv.AppendUint([]byte("0x"), v, 16) }

func parseHex(b []byte) (uint64, error) {
	if len(b) < 3 || b[0] != '0' || b[1] != 'x' {
		return 0, fmt.Errorf("address: want 0x and hexadecimal digits, got %.40q", b)
	}
	v, err := strconv.ParseUint(string(b[2:]), 16, 64)
	if err != nil {
		return 0, fmt.Errorf("address: %w", err)
	}
	return v, nil
}
