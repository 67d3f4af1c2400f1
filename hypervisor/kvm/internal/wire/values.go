package wire

import (
	"encoding/json"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Hello is what a client says first.
type Hello struct {
	Oldest  int    `json:"oldest"` // versions of the protocol that it speaks
	Newest  int    `json:"newest"`
	Program string `json:"program"` // for logs
}

// Welcome is the answer. The machine's memory comes with it as a file that can be
// read and mapped, not written.
type Welcome struct {
	Protocol int                `json:"protocol"`
	Info     hypervisor.Info    `json:"info"`
	Ranges   []hypervisor.Range `json:"ranges"` // they lie in the file one behind the other
	// Methods are those that the machine knows: a client can tell what an older
	// one lacks.
	Methods []Method `json:"methods"`
	// Facts are what else there is to know of the machine; their form is not the
	// protocol's business.
	Facts json.RawMessage `json:"facts,omitempty"`
}

// MarshalJSON writes m as its number.
func (m Method) MarshalJSON() ([]byte, error) { return json.Marshal(uint8(m)) }

// Token names a thing of one connection: a hold, a trap. The client picks it.
type Token struct {
	Token uint64 `json:"token"`
}

// SetTrap asks for a trap. Its events carry the token in place of the machine's
// own ID: the first can be there before the response is.
type SetTrap struct {
	Token uint64          `json:"token"`
	Trap  hypervisor.Trap `json:"trap"`
}

// Balloon asks for a guest that holds at most so many bytes of RAM.
type Balloon struct {
	Size uint64 `json:"size"`
}

// Save asks for the machine's state. The files come by KindWant.
type Save struct {
	Parent bool `json:"parent"` // there is an older state to stand on
}

// Progress is a part of the answer to a save.
type Progress struct {
	Done  uint64 `json:"done"`
	Total uint64 `json:"total"`
}

// Want asks the client for a file of a save.
type Want struct {
	Number uint64 `json:"number"` // of this want
	Name   string `json:"name"`   // a plain file name: see CheckFileName
	Parent bool   `json:"parent"` // of the older state
	Create bool   `json:"create"` // a new file, to be written
}

// Give is the answer; without an Error a file comes along.
type Give struct {
	Number uint64 `json:"number"`
	Error  *Error `json:"error,omitempty"`
}

// Event is one thing that happened to a machine.
type Event struct {
	Kind   string    `json:"kind"`
	Time   time.Time `json:"time"`
	Detail string    `json:"detail,omitempty"`
	// Dropped is how many events were not told since the last: this client reads
	// too slowly.
	Dropped uint64 `json:"dropped,omitempty"`
}
