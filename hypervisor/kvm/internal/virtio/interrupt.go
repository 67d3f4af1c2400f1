package virtio

// broken reports whether the guest has broken the device, or was told so.
func (d *Device) broken() bool { return d.status.Load()&statusNeedsReset != 0 }

// Break stops the device's work until the guest resets it: the answer to a guest
// that breaks the rules, and to a backend that is lost. It may be called from
// anywhere.
func (d *Device) Break(err error) {
	if d.status.Or(statusNeedsReset)&statusNeedsReset != 0 {
		return
	}
	// A guest can do it again and again: one warning is enough.
	if !d.warned.Swap(true) {
		d.log.Warn("virtio device needs a reset", "error", err)
	}
	if d.status.Load()&statusDriverOK != 0 {
		d.ConfigChanged()
	}
}

// ConfigChanged tells the guest that the configuration has changed. It may be
// called from anywhere.
func (d *Device) ConfigChanged() {
	d.generation.Add(1)
	d.interrupt(d.configVector.Load(), isrConfig)
}

// interrupt sends a queue's or the configuration's interrupt.
func (d *Device) interrupt(vector uint32, why uint8) {
	// The register says so in either case, the pin only without MSI-X. noVector
	// is beyond every table.
	d.isr.Lock()
	defer d.isr.Unlock()
	if why == isrConfig {
		d.isr.bits |= why
	}
	if !d.fn.MSIX().Signal(int(vector)) {
		d.isr.bits |= why
		d.fn.SetINTx(true)
	}
}

// readISR returns why the pin is raised, and lowers it.
func (d *Device) readISR() uint8 {
	d.isr.Lock()
	defer d.isr.Unlock()
	bits := d.isr.bits
	d.isr.bits = 0
	d.fn.SetINTx(false)
	return bits
}
