package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"syscall"
	"unsafe"
)

// attachXDP attaches a program to an interface as it was done before links, by
// netlink (RTM_SETLINK with IFLA_XDP, include/uapi/linux/if_link.h).
func attachXDP(name string, prog int) error {
	iface, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	const (
		iflaXDP, iflaXDPFd, iflaXDPFlags = 43, 1, 3
		xdpFlagsSKBMode                  = 2
		nested                           = 1 << 15 // NLA_F_NESTED
	)
	le := binary.LittleEndian
	attr := func(kind uint16, data []byte) []byte {
		b := le.AppendUint16(nil, uint16(4+len(data)))
		return append(le.AppendUint16(b, kind), data...)
	}
	body := make([]byte, syscall.SizeofIfInfomsg)
	le.PutUint32(body[4:], uint32(iface.Index))
	body = append(body, attr(iflaXDP|nested, append(attr(iflaXDPFd, le.AppendUint32(nil, uint32(prog))), attr(iflaXDPFlags, le.AppendUint32(nil, xdpFlagsSKBMode))...))...)
	head := syscall.NlMsghdr{Len: uint32(syscall.SizeofNlMsghdr + len(body)), Type: syscall.RTM_SETLINK, Flags: syscall.NLM_F_REQUEST | syscall.NLM_F_ACK, Seq: 1}
	msg := append((*[syscall.SizeofNlMsghdr]byte)(unsafe.Pointer(&head))[:], body...)
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW, syscall.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	if err := syscall.Sendto(fd, msg, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	n, _, err := syscall.Recvfrom(fd, buf, 0)
	if err != nil {
		return err
	}
	if n < syscall.SizeofNlMsghdr+4 {
		return fmt.Errorf("netlink: %d bytes", n)
	}
	if no := -int32(le.Uint32(buf[syscall.SizeofNlMsghdr:])); no != 0 {
		return syscall.Errno(no)
	}
	return nil
}
