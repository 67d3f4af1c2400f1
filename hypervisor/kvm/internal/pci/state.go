package pci

import (
	"encoding/json"
	"errors"
	"fmt"
)

const stateVersion = 1

// FunctionState is a function's part of a device's saved state.
type FunctionState struct {
	Config []byte       `json:"config"` // the first 256 bytes
	MSIX   []EntryState `json:"msix,omitempty"`
}

// EntryState is one MSI-X vector.
type EntryState struct {
	Address uint64 `json:"address"`
	Data    uint32 `json:"data"`
	Masked  bool   `json:"masked"`
	Pending bool   `json:"pending,omitempty"`
}

// State returns the function's state.
func (f *Function) State() FunctionState {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := FunctionState{Config: append([]byte(nil), f.config[:]...)}
	if f.msix != nil {
		f.msix.mu.Lock()
		defer f.msix.mu.Unlock()
		for _, e := range f.msix.entries {
			s.MSIX = append(s.MSIX, EntryState{e.addr, e.data, e.masked, e.pending})
		}
	}
	return s
}

// SetState takes over a state of a function that was made with the same Spec:
// what a guest can write, and nothing else. Changed is called when it changes
// what that says.
func (f *Function) SetState(s FunctionState) error {
	if len(s.Config) != configLen {
		return fmt.Errorf("PCI configuration of %d bytes: want %d", len(s.Config), configLen)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.config {
		if fixed := ^f.mask[i]; !f.volatile(i) && (f.config[i]^s.Config[i])&fixed != 0 {
			return fmt.Errorf("PCI configuration differs at %#x: the state is another device's", i)
		}
	}
	if f.msix != nil {
		if len(s.MSIX) != len(f.msix.entries) {
			return fmt.Errorf("%d MSI-X vectors in the state: want %d", len(s.MSIX), len(f.msix.entries))
		}
		f.msix.restore(s.MSIX)
	} else if len(s.MSIX) != 0 {
		return errors.New("MSI-X vectors in the state of a function without them")
	}
	for i, m := range f.mask {
		f.config[i] = f.config[i]&^m | s.Config[i]&m
	}
	for _, c := range f.caps {
		if c.ID == capMSIX {
			c.Write(0, 2, f.config[c.at:c.at+len(c.Data)])
		}
	}
	f.apply()
	return nil
}

// volatile reports whether a byte is data that Capability.Read has made.
func (f *Function) volatile(i int) bool {
	for _, c := range f.caps {
		if c.Read != nil && i >= c.at && i < c.at+len(c.Data) {
			return true
		}
	}
	return false
}

// restore sets the table, with MSI-X off; the message control register follows.
func (m *MSIX) restore(entries []EntryState) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.enabled = false
	for i, s := range entries {
		e := &m.entries[i]
		if addr := s.Address &^ 3; addr != e.addr || s.Data != e.data {
			e.addr, e.data, e.routed = addr, s.Data, false
		}
		e.masked, e.pending = s.Masked, s.Pending
	}
}

type hostState struct {
	Version int           `json:"version"`
	Address uint32        `json:"address"`
	Bridge  FunctionState `json:"bridge"`
}

// SaveState is bus.Saved's: the bridge's alone; devices save their functions.
func (h *Host) SaveState() ([]byte, error) {
	return json.Marshal(hostState{stateVersion, h.address.Load(), h.bridge.State()})
}

// RestoreState is bus.Saved's.
func (h *Host) RestoreState(state []byte) error {
	var s hostState
	if err := json.Unmarshal(state, &s); err != nil {
		return fmt.Errorf("PCI host state: %w", err)
	}
	if s.Version != stateVersion {
		return fmt.Errorf("PCI host state of version %d: want %d", s.Version, stateVersion)
	}
	if err := h.bridge.SetState(s.Bridge); err != nil {
		return err
	}
	h.address.Store(s.Address)
	return nil
}
