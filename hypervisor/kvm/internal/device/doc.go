// Package device holds the devices that every machine has, besides the PCI ones:
// the serial port, the real-time clock, power management, the keyboard
// controller's and the chipset's reset, and the panic device.
//
// A device knows its registers, its line and a few functions of the machine; it
// must not import anything of Vantage but packages bus and hypervisor.
package device

import (
	"encoding/json"
	"fmt"
)

// decodeState reads a device's saved state and its version.
func decodeState(name string, b []byte, into interface{ stateVersion() int }) error {
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("state of %s: %w", name, err)
	}
	if v := into.stateVersion(); v != 1 {
		return fmt.Errorf("state of %s: version %d, want 1: restore it with the release that saved it", name, v)
	}
	return nil
}

// versioned is what every saved state begins with.
type versioned struct {
	Version int `json:"version"`
}

func (v versioned) stateVersion() int { return v.Version }

// fill sets p to ones: what a register that is not there reads as.
func fill(p []byte) {
	for i := range p {
		p[i] = 0xff
	}
}

// readLE writes the bytes of v from offset on into p; what lies behind it is 0.
func readLE(p []byte, v uint64, offset uint64) {
	for i := range p {
		p[i] = byte(v >> (8 * (offset + uint64(i))))
	}
}
