package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// Protocol is the version of the protocol that this package speaks. One that
// only adds methods or fields of JSON bodies keeps its number.
const Protocol = 1

// Bounds of a message.
const (
	headerSize = 16
	MaxMessage = 64 << 10 // below the kernel's default for a socket's buffer (net.core.wmem_default)
	MaxBody    = MaxMessage - headerSize
	MaxFiles   = 64 // with one message: a channel for each vCPU
)

// ErrMalformed is wrapped by the errors of messages that are not what this
// package writes. The connection is of no use any more.
var ErrMalformed = errors.New("malformed message")

// Kind says what a message is.
type Kind uint8

// Kinds of messages.
const (
	KindHello    Kind = 1 + iota // both ways, once: Hello, Welcome
	KindRequest                  // client: a Method, with an ID that is not in use
	KindPart                     // machine: a part of the answer to ID, before its end
	KindResponse                 // machine: the end of the answer to ID
	KindError                    // machine: the end of the answer to ID, which is an Error
	KindCancel                   // client: ID is not wanted any more; it is answered all the same
	KindEvent                    // machine: an Event, to who has asked for them
	KindWant                     // machine: a save, ID, wants a file: Want
	KindGive                     // client: the answer: Give, with the file
	KindGoodbye                  // machine: the connection ends, and why: an Error
	kindEnd
)

// Method is what a request asks for. Its body and that of its response are named
// with it; none: empty.
type Method uint8

// Methods.
const (
	MethodInfo         Method = 1 + iota // → hypervisor.Info, JSON
	MethodPause                          // the machine's own state
	MethodResume                         //
	MethodState                          // → hypervisor.State, JSON
	MethodHold                           // Token, JSON: a pause that ends with the client
	MethodRelease                        // Token, JSON
	MethodRegisters                      // → AppendRegisters of each vCPU
	MethodSetRegisters                   // AppendRegisters
	MethodWrite                          // AppendWrite
	MethodChannels                       // → the channels of all vCPUs, as files
	MethodSetTrap                        // SetTrap, JSON
	MethodRemoveTrap                     // Token, JSON
	MethodStartDirty                     //
	MethodDirty                          // → parts: AppendRanges
	MethodStopDirty                      //
	MethodEvents                         // from now on events are sent
	MethodPowerButton                    //
	MethodReset                          //
	MethodStop                           //
	MethodBalloon                        // Balloon, JSON
	MethodSave                           // Save, JSON → parts: Progress, JSON
	methodEnd
)

func (m Method) String() string {
	names := [...]string{
		MethodInfo: "info", MethodPause: "pause", MethodResume: "resume", MethodState: "state",
		MethodHold: "hold", MethodRelease: "release", MethodRegisters: "registers",
		MethodSetRegisters: "set registers", MethodWrite: "write", MethodChannels: "trap channels",
		MethodSetTrap: "set trap", MethodRemoveTrap: "remove trap", MethodStartDirty: "start dirty tracking",
		MethodDirty: "dirty pages", MethodStopDirty: "stop dirty tracking", MethodEvents: "events",
		MethodPowerButton: "power button", MethodReset: "reset", MethodStop: "stop",
		MethodBalloon: "balloon", MethodSave: "save",
	}
	if m == 0 || m >= methodEnd {
		return fmt.Sprintf("method %d", uint8(m))
	}
	return names[m]
}

// Message is one message. In the socket it is, little endian: u32 its whole
// length, u8 kind, u8 method, u8 number of files, u8 zero, u64 ID, the body.
type Message struct {
	Kind   Kind
	Method Method // of requests
	ID     uint64
	Body   []byte
	Files  []*os.File
}

// JSON returns m with v as its body. v is a struct of ours, which always encodes.
func (m Message) JSON(v any) Message {
	b, err := json.Marshal(v)
	if err != nil {
		panic("wire: " + err.Error())
	}
	m.Body = b
	return m
}

// Into decodes a JSON body into v.
func (m Message) Into(v any) error {
	if err := json.Unmarshal(m.Body, v); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}

// Append writes m behind b, without its files.
func (m Message) Append(b []byte) ([]byte, error) {
	if len(m.Body) > MaxBody || len(m.Files) > MaxFiles {
		return b, fmt.Errorf("message of %d bytes and %d files: at most %d and %d", len(m.Body), len(m.Files), MaxBody, MaxFiles)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(headerSize+len(m.Body)))
	b = append(b, byte(m.Kind), byte(m.Method), byte(len(m.Files)), 0)
	b = binary.LittleEndian.AppendUint64(b, m.ID)
	return append(b, m.Body...), nil
}

// Parse reads what Append wrote, and how many files come with it. The body is
// part of b.
func Parse(b []byte) (m Message, files int, err error) {
	if len(b) < headerSize || len(b) > MaxMessage {
		return m, 0, fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	}
	if n := binary.LittleEndian.Uint32(b); uint64(n) != uint64(len(b)) {
		return m, 0, fmt.Errorf("%w: %d bytes that claim to be %d", ErrMalformed, len(b), n)
	}
	m = Message{Kind: Kind(b[4]), Method: Method(b[5]), ID: binary.LittleEndian.Uint64(b[8:]), Body: b[headerSize:]}
	if m.Kind == 0 || m.Kind >= kindEnd || b[6] > MaxFiles || b[7] != 0 {
		return m, 0, fmt.Errorf("%w: header %x", ErrMalformed, b[:headerSize])
	}
	return m, int(b[6]), nil
}

// Methods returns all that this package knows.
func Methods() []Method {
	var all []Method
	for m := Method(1); m < methodEnd; m++ {
		all = append(all, m)
	}
	return all
}
