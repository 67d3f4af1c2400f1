package device

// Keyboard is what is left of an i8042: no keyboard, but the command that pulses
// the processor's reset line. It answers at ports 0x60 to 0x64.
type Keyboard struct{ reset func() }

// NewKeyboard returns it; reset is called by a vCPU's thread.
func NewKeyboard(reset func()) *Keyboard { return &Keyboard{reset} }

const (
	keyboardCommand = 4
	// pulseReset is the command 0xfe: pulse output bit 0.
	pulseReset = 0xfe
)

// Read is bus.Handler's.
func (k *Keyboard) Read(offset uint64, p []byte) {
	fill(p)
	if offset == keyboardCommand {
		p[0] = 0 // both buffers are empty: who wants to write a command may
	}
}

// Write is bus.Handler's.
func (k *Keyboard) Write(offset uint64, p []byte) {
	if offset == keyboardCommand && p[0] == pulseReset {
		k.reset()
	}
}

// ResetPort is the chipset's reset control register (0xcf9), which the FADT
// names.
type ResetPort struct{ reset func() }

// NewResetPort returns it; reset is called by a vCPU's thread.
func NewResetPort(reset func()) *ResetPort { return &ResetPort{reset: reset} }

// ResetValue is what the FADT's reset register is written with.
const ResetValue = 6

// Read is bus.Handler's.
func (r *ResetPort) Read(_ uint64, p []byte) { clear(p) }

// Write is bus.Handler's.
func (r *ResetPort) Write(_ uint64, p []byte) {
	if p[0]&4 != 0 { // RST_CPU
		r.reset()
	}
}
