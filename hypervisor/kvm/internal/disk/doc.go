// Package disk opens disk images as a virtual machine's block devices use them:
// raw files and block devices, and qcow2 with its chain of backing files.
//
// An image in use is locked as QEMU locks it, so that QEMU's programs and ours
// keep out of each other's images. What is in an image is trusted as little as
// the guest that has written it.
//
// It must not import anything but packages of its own folder: virtio-blk stands
// on it, and it knows no device.
//
// # Format and security
//
// Say which format an image has (Options.Format). Who guesses is at the guest's
// mercy: a guest with a raw disk can write a qcow2 header to its first sector,
// whose backing file is any file of the host. When the format is not given, two
// rules keep that shut:
//
//   - An image that begins with qcow2's magic is opened as qcow2, but then it may
//     not name any other file: one with a backing file is refused.
//   - Anything else is raw, and what would make its first sector look like an
//     image format is refused to be written (ErrProbed): so the disk is still raw
//     to the next who guesses.
//
// The same holds for a backing file whose format its overlay does not record.
//
// # Backing files
//
// A relative name of a backing file is relative to the folder of the image that
// names it, as for QEMU. Names of other kinds that QEMU knows (json:, nbd:, …)
// are refused. Backing files are opened read-only. Options.NoBacking refuses
// every one of them; Options.Backing gives them as open files, and then nothing
// is opened by name: that is for a process that may not open files. OpenFiles
// opens an image's chain for such a process.
package disk
