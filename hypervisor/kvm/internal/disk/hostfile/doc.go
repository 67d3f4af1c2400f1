// Package hostfile is a file or block device of the host that holds a disk
// image: vectored reads and writes straight from and to guest memory, holes,
// and the locks by which QEMU and we keep out of each other's images.
//
// It knows no image format, and must not import anything of Vantage.
package hostfile
