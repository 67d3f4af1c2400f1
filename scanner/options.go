package scanner

import (
	"log/slog"
	"runtime"
	"time"
)

const (
	// ExtentSize is how many bytes of an area, at most, are scanned as one
	// extent. A worker has one buffer a little larger than that.
	ExtentSize = 8 << 20
	// Overlap is how many bytes behind the end of an extent that was cut are
	// shown to libyara with it. No literal or regular expression of libyara 4.2
	// matches more (YR_RE_SCAN_LIMIT is 4096 bytes).
	Overlap = 16 << 10
	// DefaultTimeout is how long libyara may work on one extent.
	DefaultTimeout = 10 * time.Second
)

// Options of a scan. The zero value is usable.
type Options struct {
	VM string // the VM's name, for the findings
	// Workers is how many extents are scanned at a time; 0 is one per CPU. The
	// results do not depend on it; memory does: about 9 MiB for each.
	Workers int
	// Timeout is how long libyara may work on one extent, rounded up to whole
	// seconds; 0 is DefaultTimeout. Hostile bytes can make a regular expression
	// slow.
	Timeout time.Duration
	// MaxStrings is how many matches a Finding lists; 0 is MaxStrings.
	MaxStrings int
	// OnFinding is given each finding as soon as all that precede it are known:
	// in order of targets, areas, addresses and rules, the same on every run
	// over the same bytes. It is called on the goroutine of Scan. An error ends
	// the scan.
	OnFinding func(Finding) error
	// OnProgress is told, on the goroutine of Scan, how far the scan is. With
	// it, the page tables are walked once more at the start, to know the total.
	OnProgress func(Progress)
	Logger     *slog.Logger // nil: no log

	extentSize int // tests cut smaller
}

// Progress is how far a scan is.
type Progress struct {
	Done, Total uint64 // bytes of guest memory; Total may be off on a live guest
	Findings    int
}

func (o Options) withDefaults() Options {
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	if o.MaxStrings <= 0 {
		o.MaxStrings = MaxStrings
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.extentSize == 0 {
		o.extentSize = ExtentSize
	}
	return o
}
