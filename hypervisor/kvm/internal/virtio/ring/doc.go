// Package ring is the device's side of a split virtqueue (virtio 1.2, 2.7): it
// takes the guest's chains of descriptors out of the available ring and gives
// them back through the used ring.
//
// Everything in guest memory is hostile and changes while it is read: each value
// is read once and checked, walks are bounded, and a chain that breaks the rules
// is an error that wraps ErrBroken, after which the device must not go on. The
// rings are looked up in guest memory once, when the queue is switched on.
//
// It must not import anything but packages hypervisor and bus.
package ring
