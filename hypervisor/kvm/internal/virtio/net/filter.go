package net

import "slices"

// filter says which packets the guest wants.
type filter struct {
	Promiscuous  bool `json:"promiscuous"`
	AllMulticast bool `json:"all_multicast"`
	AllUnicast   bool `json:"all_unicast"`
	NoMulticast  bool `json:"no_multicast"`
	NoUnicast    bool `json:"no_unicast"`
	NoBroadcast  bool `json:"no_broadcast"`

	Unicast   [][macLen]byte `json:"unicast"`
	Multicast [][macLen]byte `json:"multicast"`
	// A guest that lists more than maxTable gets all.
	TooManyUnicast   bool `json:"too_many_unicast"`
	TooManyMulticast bool `json:"too_many_multicast"`
}

// passAll is a filter after a reset, which a driver that knows no filter keeps.
func passAll() filter { return filter{Promiscuous: true} }

var broadcast = [macLen]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// wants reports whether a packet to an address is for the guest, whose own one
// is mac.
func (f *filter) wants(to, mac [macLen]byte) bool {
	switch {
	case f.Promiscuous:
		return true
	case to == broadcast:
		return !f.NoBroadcast
	case to[0]&1 != 0:
		return !f.NoMulticast && (f.AllMulticast || f.TooManyMulticast || slices.Contains(f.Multicast, to))
	}
	return !f.NoUnicast && (to == mac || f.AllUnicast || f.TooManyUnicast || slices.Contains(f.Unicast, to))
}
