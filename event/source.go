package event

import (
	"crypto/rand"
	"encoding/hex"
	"sync"
	"time"
)

// Source makes events: it gives them an ID and a time. It is safe for
// concurrent use.
type Source struct {
	now func() time.Time

	mu   sync.Mutex
	last uint64 // time field of the last ID: milliseconds<<12 | fraction
}

// NewSource returns a source whose events happen at the moment that now
// returns; nil stands for time.Now.
func NewSource(now func() time.Time) *Source {
	if now == nil {
		now = time.Now
	}
	return &Source{now: now}
}

// New returns an event of the given kind that happens now. The caller fills in
// its parts.
func (s *Source) New(kind Kind, severity Severity) Event {
	t := s.now()
	return Event{
		SchemaVersion: SchemaVersion,
		ID:            s.NewID(t),
		Time:          At(t),
		Kind:          kind,
		Severity:      severity,
	}
}

// NewID returns a UUIDv7 of time t (RFC 9562, section 5.7). IDs of one source
// sort as text in the order in which they were made; where t does not move on,
// they count on from the last one.
func (s *Source) NewID(t time.Time) string {
	ns := max(t.UnixNano(), 0)
	// Method 3 of RFC 9562, section 6.2: twelve bits of the millisecond's
	// fraction follow the milliseconds.
	ms, frac := uint64(ns/1e6), uint64(ns%1e6)<<12/1e6
	stamp := ms<<12 | frac

	s.mu.Lock()
	if stamp <= s.last {
		stamp = s.last + 1
	}
	s.last = stamp
	s.mu.Unlock()

	var u [16]byte
	for i := range 6 {
		u[i] = byte(stamp >> (12 + 8*(5-i)))
	}
	u[6] = 0x70 | byte(stamp>>8)&0x0f
	u[7] = byte(stamp)
	// crypto/rand.Read never returns an error (since Go 1.24).
	_, _ = rand.Read(u[8:])
	u[8] = u[8]&0x3f | 0x80

	var b [36]byte
	hex.Encode(b[0:8], u[0:4])
	b[8] = '-'
	hex.Encode(b[9:13], u[4:6])
	b[13] = '-'
	hex.Encode(b[14:18], u[6:8])
	b[18] = '-'
	hex.Encode(b[19:23], u[8:10])
	b[23] = '-'
	hex.Encode(b[24:36], u[10:16])
	return string(b[:])
}
