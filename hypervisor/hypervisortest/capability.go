package hypervisortest

import "github.com/vantage-vmi/vantage/hypervisor"

// Capability is a set of what a fake VM can do beyond hypervisor.VM and Live.
type Capability uint8

// What a fake VM can do.
const (
	CanMap          Capability = 1 << iota // hypervisor.Mapper
	CanWrite                               // hypervisor.Writer
	CanPause                               // hypervisor.Pauser
	CanRegisters                           // hypervisor.RegisterReader
	CanSetRegisters                        // hypervisor.RegisterWriter
	CanTrap                                // hypervisor.Trapper
	CanDirty                               // hypervisor.DirtyTracker

	CanNothing Capability = 0
	CanLook               = CanMap | CanWrite | CanPause | CanRegisters
	CanAll                = CanLook | CanSetRegisters | CanTrap | CanDirty
)

type base interface {
	hypervisor.VM
	hypervisor.Live
}

type (
	mapper    = hypervisor.Mapper
	writer    = hypervisor.Writer
	pauser    = hypervisor.Pauser
	registers = hypervisor.RegisterReader
)

// VM returns a handle on the fake that has just the capabilities c: what is not
// in c is not in the handle's type. What is not in CanLook comes with all or not at
// all. All handles are one VM: to close one closes all.
func (f *Fake) VM(c Capability) hypervisor.VM {
	if c&^CanLook != 0 && c != CanAll {
		panic("hypervisortest.Fake.VM: traps, dirty pages and writable registers come with CanAll")
	}
	switch c {
	case CanMap:
		return struct {
			base
			mapper
		}{f, f}
	case CanWrite:
		return struct {
			base
			writer
		}{f, f}
	case CanPause:
		return struct {
			base
			pauser
		}{f, f}
	case CanRegisters:
		return struct {
			base
			registers
		}{f, f}
	case CanMap | CanWrite:
		return struct {
			base
			mapper
			writer
		}{f, f, f}
	case CanMap | CanPause:
		return struct {
			base
			mapper
			pauser
		}{f, f, f}
	case CanMap | CanRegisters:
		return struct {
			base
			mapper
			registers
		}{f, f, f}
	case CanWrite | CanPause:
		return struct {
			base
			writer
			pauser
		}{f, f, f}
	case CanWrite | CanRegisters:
		return struct {
			base
			writer
			registers
		}{f, f, f}
	case CanPause | CanRegisters:
		return struct {
			base
			pauser
			registers
		}{f, f, f}
	case CanMap | CanWrite | CanPause:
		return struct {
			base
			mapper
			writer
			pauser
		}{f, f, f, f}
	case CanMap | CanWrite | CanRegisters:
		return struct {
			base
			mapper
			writer
			registers
		}{f, f, f, f}
	case CanMap | CanPause | CanRegisters:
		return struct {
			base
			mapper
			pauser
			registers
		}{f, f, f, f}
	case CanWrite | CanPause | CanRegisters:
		return struct {
			base
			writer
			pauser
			registers
		}{f, f, f, f}
	case CanLook:
		return struct {
			base
			mapper
			writer
			pauser
			registers
		}{f, f, f, f, f}
	case CanAll:
		return f
	}
	return struct{ base }{f}
}
