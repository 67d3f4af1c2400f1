package qemu

import (
	"errors"
	"log/slog"
	"time"
)

// DriverName is the scheme of this driver's URIs.
const DriverName = "qemu"

// DefaultTimeout bounds one exchange with a QMP monitor when Options gives no
// other time.
const DefaultTimeout = 3 * time.Second

// ErrAmbiguous is returned by Open when several VMs have the name that was
// asked for.
var ErrAmbiguous = errors.New("several VMs have this name")

// Options configure a Driver. The zero value is ready for use.
type Options struct {
	// Logger gets what the driver decided and what it could not do; nil: none.
	Logger *slog.Logger
	// Timeout bounds one exchange with a QMP monitor; 0: DefaultTimeout.
	Timeout time.Duration
	// NoQMP keeps the driver away from monitors: it then works from /proc and
	// the process's memory alone.
	NoQMP bool
}

// Driver finds and opens QEMU VMs. It holds no resources, and is safe for
// concurrent use.
type Driver struct {
	log     *slog.Logger
	timeout time.Duration
	noQMP   bool
}

// New returns a Driver.
func New(o Options) *Driver {
	d := &Driver{log: o.Logger, timeout: o.Timeout, noQMP: o.NoQMP}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if d.timeout <= 0 {
		d.timeout = DefaultTimeout
	}
	return d
}

// Name returns "qemu".
func (d *Driver) Name() string { return DriverName }
