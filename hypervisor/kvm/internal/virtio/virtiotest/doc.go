// Package virtiotest is a machine without a processor and the guest's side of
// virtio, for tests: it finds devices on the PCI bus, sets up queues and moves
// requests as a guest's driver does. It is written from the specifications and
// shares no constant and no code with the devices that it drives.
//
// This package is for tests only and must not be imported by anything else.
package virtiotest
