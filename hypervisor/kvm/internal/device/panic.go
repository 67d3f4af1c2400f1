package device

// Panic is the pvpanic device (docs/specs/pvpanic of QEMU): the guest's kernel
// writes to its port when it panics.
type Panic struct{ told func(PanicKind) }

// PanicKind is what the guest says.
type PanicKind byte

// Kinds of panics.
const (
	PanicDied  PanicKind = 1 << 0 // PVPANIC_PANICKED
	PanicCrash PanicKind = 1 << 1 // PVPANIC_CRASH_LOADED: a crash kernel takes over
)

// NewPanic returns it; told is called by a vCPU's thread.
func NewPanic(told func(PanicKind)) *Panic { return &Panic{told} }

// Read is bus.Handler's: which events the device knows.
func (d *Panic) Read(_ uint64, p []byte) {
	fill(p)
	p[0] = byte(PanicDied | PanicCrash)
}

// Write is bus.Handler's.
func (d *Panic) Write(_ uint64, p []byte) {
	if k := PanicKind(p[0]) & (PanicDied | PanicCrash); k != 0 {
		d.told(k)
	}
}
