package linux

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
)

// LogLevel is how grave a record of the kernel's log is: 0, the gravest, to 7
// (include/linux/kern_levels.h).
type LogLevel uint8

// logLevels are the names that dmesg(1) uses.
var logLevels = [8]string{"emerg", "alert", "crit", "err", "warn", "notice", "info", "debug"}

// String returns the level's name as dmesg(1) writes it: "err", "warn".
func (l LogLevel) String() string {
	if int(l) < len(logLevels) {
		return logLevels[l]
	}
	return strconv.Itoa(int(l))
}

// MarshalText writes l as String does.
func (l LogLevel) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// ParseLogLevel returns the level of that name; ok is false when there is none.
func ParseLogLevel(name string) (l LogLevel, ok bool) {
	for i, n := range logLevels {
		if n == name {
			return LogLevel(i), true
		}
	}
	return 0, false
}

// logFacilities are the names of syslog's facilities (include/uapi of syslog(3)).
var logFacilities = [...]string{
	"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
}

// LogFacility is who wrote a record of the kernel's log: 0 the kernel itself,
// others what a program said that it is (syslog(3)).
type LogFacility uint8

// String returns the facility's name as dmesg(1) writes it: "kern", "daemon".
func (f LogFacility) String() string {
	switch {
	case int(f) < len(logFacilities):
		return logFacilities[f]
	case f >= 16 && f < 24:
		return "local" + strconv.Itoa(int(f)-16)
	}
	return strconv.Itoa(int(f))
}

// MarshalText writes f as String does.
func (f LogFacility) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// LogRecord is one record of the kernel's log.
type LogRecord struct {
	Seq      uint64      `json:"seq"` // counts all records since boot
	Level    LogLevel    `json:"level"`
	Facility LogFacility `json:"facility"`
	// SinceBoot is the kernel's own stamp: it stands still while the guest is
	// suspended.
	SinceBoot time.Duration `json:"since_boot_ns"`
	// Time is SinceBoot after the guest's boot, in UTC by the guest's own clock;
	// zero where not known.
	Time time.Time `json:"time,omitzero"`
	// Text is what was printed, without the last line break. It may have several
	// lines.
	Text string `json:"text"`
	// Caller is the thread ("T812") or, in an interrupt, the CPU ("C3") that
	// wrote it, as the kernel prints it under CONFIG_PRINTK_CALLER. Comm is that
	// thread's name, in kernels that note it.
	Caller string `json:"caller"`
	Comm   string `json:"comm"`
	// Subsystem and Device are of the device that the record is about, as in
	// /dev/kmsg: "pci", "+pci:0000:00:01.1".
	Subsystem string `json:"subsystem"`
	Device    string `json:"device"`
	// Continues: the record goes on with the line of the one before it.
	Continues bool `json:"continues"`
	// Open: its writer may still add to it. /dev/kmsg does not show it yet.
	Open bool `json:"open"`
}

// MarshalJSON writes r with its strings made valid: see the package comment.
func (r LogRecord) MarshalJSON() ([]byte, error) {
	type plain LogRecord
	q := plain(r)
	q.Comm, q.Subsystem, q.Device, q.Text = jsonText(r.Comm), jsonText(r.Subsystem), jsonText(r.Device), jsonText(r.Text)
	return json.Marshal(q)
}

// KernelLog is what is left in the kernel's log, oldest record first.
type KernelLog struct {
	Records  []LogRecord
	Coverage *introspect.Coverage
}

// Bounds of the kernel's log: LOG_BUF_LEN_MAX (kernel/printk/printk.c) is 2 GiB,
// of which no machine uses more than a few MiB.
const (
	maxLogRecords = 1 << 20
	maxLogText    = 64 << 20 // bytes of all records together
	maxLogBits    = 31       // log2 of the size of a ring
)

// KernelLog returns the kernel's log, as dmesg(1) shows it in the guest: the
// lockless ring buffer of Linux 5.10 and later (kernel/printk/printk_ringbuffer.h)
// or the record buffer of kernels before that. On a live guest, records that are
// overwritten while they are read are left out, as they are for readers in the
// guest.
//
// It returns an error that wraps profile.ErrNoType or profile.ErrNoSymbol when
// this kernel has neither, and one of reading memory when the log itself cannot
// be read.
func (g *Guest) KernelLog(ctx context.Context) (KernelLog, error) {
	cov := &introspect.Coverage{}
	l := KernelLog{Records: []LogRecord{}, Coverage: cov}
	rounds := g.rounds()
	boot, err := g.bootTime()
	if err != nil {
		cov.Add("boot time", g.sym.timekeeper, err)
	}
	add := func(r LogRecord) {
		if !boot.IsZero() {
			r.Time = boot.Add(r.SinceBoot)
		}
		l.Records = append(l.Records, r)
	}
	ring, err := tableOf[logTable](g, cov)
	if err == nil {
		w := logWalk{ctx: ctx, r: &g.r, t: ring, live: rounds > 1, left: maxLogText, cov: cov, add: add}
		if err = w.ring(ring.prb); err != nil {
			return l, fmt.Errorf("kernel log: %w", err)
		}
		return l, nil
	}
	if !errors.Is(err, profile.ErrNoType) && !errors.Is(err, profile.ErrNoSymbol) {
		return l, fmt.Errorf("kernel log: %w", err)
	}
	old, oldErr := tableOf[logOldTable](g, cov)
	if oldErr != nil {
		return l, fmt.Errorf("kernel log: %w", err) // of what kernels have today
	}
	if err := g.oldLog(ctx, old, rounds, cov, add); err != nil {
		return l, fmt.Errorf("kernel log: %w", err)
	}
	return l, nil
}

// logCallerCPU marks a caller that is a CPU's number, not a thread's
// (printk_caller_id in kernel/printk/printk.c).
const logCallerCPU = 1 << 31

func logCaller(id uint32) string {
	if id&logCallerCPU != 0 {
		return "C" + strconv.FormatUint(uint64(id&^logCallerCPU), 10)
	}
	return "T" + strconv.FormatUint(uint64(id), 10)
}

// logCont says that a record continues the one before (enum printk_info_flags in
// kernel/printk/printk_ringbuffer.h, enum log_flags before 5.17).
const logCont = 8

// bitMember is a member that may be a bit-field of at most 8 bits.
type bitMember struct {
	at    field // the byte that it lies in
	shift uint
	width uint
}

// bitMemberOf looks a bit-field up.
func bitMemberOf(t types, path string) bitMember {
	f, err := t.Field(path)
	if err != nil || f.Offset > maxOffset || f.BitOffset+f.BitSize > 8 {
		return bitMember{}
	}
	m := bitMember{at: field{off: f.Offset, size: 1, ok: true}, shift: uint(f.BitOffset), width: uint(f.BitSize)}
	if f.BitSize == 0 {
		m.shift, m.width = 0, 8
	}
	return m
}

func (o object) bits(m bitMember) uint64 { return o.uint(m.at) >> m.shift & (1<<m.width - 1) }

// logAddr is an address in a log's buffer.
func logAddr(base hypervisor.VirtAddr, off uint64) hypervisor.VirtAddr {
	return base + hypervisor.VirtAddr(off)
}
