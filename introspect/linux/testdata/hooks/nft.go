package main

import (
	"encoding/binary"
	"fmt"
	"syscall"
)

// makeChains makes base chains of nftables, which hook into netfilter
// (include/uapi/linux/netfilter/nfnetlink.h, nf_tables.h).
func makeChains() error {
	const (
		subsys                   = 10
		newTable, newChain       = subsys<<8 | 0, subsys<<8 | 3
		batchBegin, batchEnd     = 16, 17
		nested                   = 1 << 15
		inet, ipv4, netdev, ipv6 = 1, 2, 5, 10
	)
	le, be := binary.LittleEndian, binary.BigEndian
	attr := func(kind uint16, data []byte) []byte {
		b := le.AppendUint16(nil, uint16(4+len(data)))
		b = append(le.AppendUint16(b, kind), data...)
		return append(b, make([]byte, (4-len(b)%4)%4)...)
	}
	text := func(kind uint16, s string) []byte { return attr(kind, append([]byte(s), 0)) }
	var out []byte
	seq := uint32(0)
	message := func(kind uint16, flags uint16, family byte, id uint16, attrs ...[]byte) {
		body := be.AppendUint16([]byte{family, 0}, id)
		for _, a := range attrs {
			body = append(body, a...)
		}
		b := le.AppendUint32(nil, uint32(syscall.NLMSG_HDRLEN+len(body)))
		b = le.AppendUint16(b, kind)
		b = le.AppendUint16(b, syscall.NLM_F_REQUEST|flags)
		seq++
		b = le.AppendUint32(b, seq)
		b = le.AppendUint32(b, 0)
		out = append(out, append(b, body...)...)
	}
	const create = syscall.NLM_F_CREATE | syscall.NLM_F_ACK
	message(batchBegin, 0, 0, subsys)
	acks := 0
	for _, c := range []struct {
		family         byte
		hook, priority int32
		dev            string
	}{{ipv4, 1, -5, ""}, {ipv6, 4, 110, ""}, {inet, 2, 7, ""}, {netdev, 0, 33, "lo"}} {
		message(newTable, create, c.family, 0, text(1, "vt"))
		hook := append(attr(1, be.AppendUint32(nil, uint32(c.hook))), attr(2, be.AppendUint32(nil, uint32(c.priority)))...)
		if c.dev != "" {
			hook = append(hook, text(3, c.dev)...)
		}
		message(newChain, create, c.family, 0, text(1, "vt"), text(3, "vt_chain"), attr(4|nested, hook), text(7, "filter"))
		acks += 2
	}
	message(batchEnd, 0, 0, subsys)
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW, syscall.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	// It stays open.
	if err := syscall.Sendto(fd, out, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	for acks > 0 {
		buf := make([]byte, 8192)
		n, _, err := syscall.Recvfrom(fd, buf, 0)
		if err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
		ms, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return err
		}
		for _, m := range ms {
			if no := -int32(le.Uint32(m.Data)); m.Header.Type == syscall.NLMSG_ERROR && no != 0 {
				return fmt.Errorf("nftables: message %d: %w", m.Header.Seq, syscall.Errno(no))
			}
			acks--
		}
	}
	return nil
}
