// Package block is the virtio block device (virtio 1.2, 5.2) in front of a disk.
//
// It must not import anything of Vantage but packages virtio and ring: the disk
// is whatever has the methods of Disk.
package block
