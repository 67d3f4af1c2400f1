package net

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// tap is a tap interface: a packet a read or write, each with a header in front.
type tap struct {
	fd  int
	iov []unix.Iovec // of reads
	out []unix.Iovec // of writes
}

// newTap checks f and sets it up. The caller keeps it open.
func newTap(f *os.File) (*tap, error) {
	t := &tap{fd: int(f.Fd()), iov: make([]unix.Iovec, 0, maxIov), out: make([]unix.Iovec, 0, maxIov)}
	var req unix.Ifreq
	if err := unix.IoctlIfreq(t.fd, unix.TUNGETIFF, &req); err != nil {
		return nil, fmt.Errorf("%s is not a tap interface: %w", f.Name(), err)
	}
	const want = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	if flags := req.Uint16(); flags&(want|unix.IFF_TUN) != want {
		return nil, fmt.Errorf("tap %s: attached with flags %#x: want IFF_TAP, IFF_NO_PI and IFF_VNET_HDR", req.Name(), flags)
	}
	if err := unix.IoctlSetPointerInt(t.fd, unix.TUNSETVNETHDRSZ, headerLen); err != nil {
		return nil, fmt.Errorf("tap %s: TUNSETVNETHDRSZ: %w", req.Name(), err)
	}
	if err := unix.SetNonblock(t.fd, true); err != nil {
		return nil, fmt.Errorf("tap %s: %w", req.Name(), err)
	}
	return t, nil
}

// setOffloads says what whoever reads packets can do without.
func (t *tap) setOffloads(features uint64) error {
	var flags int
	if features&featureGuestCsum != 0 {
		flags = tunCsum
		for _, o := range []struct {
			feature uint64
			flag    int
		}{{featureGuestTSO4, tunTSO4}, {featureGuestTSO6, tunTSO6}, {featureGuestECN, tunTSOECN}} {
			if features&o.feature != 0 {
				flags |= o.flag
			}
		}
	}
	if err := unix.IoctlSetInt(t.fd, unix.TUNSETOFFLOAD, flags); err != nil {
		return fmt.Errorf("TUNSETOFFLOAD %#x: %w", flags, err)
	}
	return nil
}

// read reads a packet into iov and returns its length, which is 0 when there is
// none.
func (t *tap) read(iov [][]byte) (int, error) {
	n, err := vector(unix.SYS_READV, t.fd, &t.iov, iov)
	if errors.Is(err, unix.EAGAIN) {
		return 0, nil
	}
	return n, err
}

// write sends a packet. One that the tap does not take is lost, as on a wire.
func (t *tap) write(iov [][]byte) { _, _ = vector(unix.SYS_WRITEV, t.fd, &t.out, iov) }
