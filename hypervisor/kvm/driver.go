package kvm

import (
	"errors"
	"log/slog"
	"time"
)

// DriverName is the scheme of this driver's URIs.
const DriverName = "kvm"

// DefaultTimeout bounds what a machine answers at once (who it is, its state)
// when Options gives no other time.
const DefaultTimeout = 3 * time.Second

// ErrAmbiguous is returned by Open when several users have a VM of the name that
// was asked for.
var ErrAmbiguous = errors.New("several users have a VM of this name")

// Options configure a Driver. The zero value is ready for use.
type Options struct {
	Logger *slog.Logger // nil: none
	// Timeout bounds what a machine answers at once; 0: DefaultTimeout.
	Timeout time.Duration
	// Dirs are the folders of sockets, our own first; nil: the usual ones.
	Dirs []string
}

// Driver finds and opens machines. It holds no resources, and is safe for
// concurrent use.
type Driver struct {
	log     *slog.Logger
	timeout time.Duration
	dirs    []string
}

// New returns a Driver.
func New(o Options) *Driver {
	d := &Driver{log: o.Logger, timeout: o.Timeout, dirs: o.Dirs}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if d.timeout <= 0 {
		d.timeout = DefaultTimeout
	}
	return d
}

// Name returns "kvm".
func (d *Driver) Name() string { return DriverName }
