// Package net is the virtio network device (virtio 1.2, 5.1) on a tap interface:
// packets go between the tap and the guest's buffers without a copy of ours,
// with their checksums and segments left to whoever does them best. With vhost
// the host's kernel moves the packets, where no one but it sees them.
//
// It must not import anything of Vantage but packages hypervisor, virtio, ring
// and vhost.
package net
