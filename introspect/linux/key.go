package linux

import (
	"encoding/json"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// Key is a key that the guest's kernel keeps (keyrings(7)), without what it
// holds: the payload is never read.
type Key struct {
	Serial      int32  `json:"serial"`
	Type        string `json:"type"` // user, keyring, asymmetric, …
	Description string `json:"description"`
	UID         int    `json:"uid"` // NoID where there is none
	GID         int    `json:"gid"`
	// Perm are the permissions, as /proc/keys prints them in hexadecimal:
	// those of the possessor, the user, the group and others, 8 bits each.
	Perm uint32 `json:"perm"`
	// Flags are what /proc/keys prints as letters: instantiated, revoked,
	// dead, quota, construction, negative, invalidated.
	Flags []string `json:"flags"`
	// Expiry is when the key expires, or was revoked when it is (UTC); zero
	// when it does not expire.
	Expiry time.Time `json:"expiry,omitzero"`
	Usage  uint32    `json:"usage"` // references
	// Keys is the number of keys that a keyring holds.
	Keys uint64 `json:"keys,omitempty"`
	// KernelAddress is where the struct key lies.
	KernelAddress hypervisor.VirtAddr `json:"kernel_address"`
}

// MarshalJSON writes k with its strings made valid: see the package comment.
func (k Key) MarshalJSON() ([]byte, error) {
	type plain Key
	q := plain(k)
	q.Type, q.Description = jsonText(k.Type), jsonText(k.Description)
	return json.Marshal(q)
}

// KeyList is what Keys found, sorted by serial number.
type KeyList struct {
	Keys []Key
	// Coverage tells what could not be read or believed.
	Coverage *introspect.Coverage
}
