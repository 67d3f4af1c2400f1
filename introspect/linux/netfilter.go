package linux

import "fmt"

// Families and hooks of netfilter (include/uapi/linux/netfilter.h,
// netfilter_arp.h).
const (
	nfprotoInet   = 1
	nfprotoIPv4   = 2
	nfprotoARP    = 3
	nfprotoNetdev = 5
	nfprotoBridge = 7
	nfprotoIPv6   = 10
)

// netfilterPoint names a hook point of netfilter as nft does: "ip prerouting",
// "netdev ingress".
func netfilterPoint(family, hook uint64) string {
	hooks := []string{"prerouting", "input", "forward", "output", "postrouting"}
	var name string
	switch family {
	case nfprotoInet:
		name, hooks = "inet", append(hooks, "ingress")
	case nfprotoIPv4:
		name = "ip"
	case nfprotoIPv6:
		name = "ip6"
	case nfprotoBridge:
		name = "bridge"
	case nfprotoARP:
		name, hooks = "arp", []string{"input", "output", "forward"}
	case nfprotoNetdev:
		name, hooks = "netdev", []string{"ingress", "egress"}
	default:
		name = fmt.Sprintf("family %d", family)
	}
	if hook < uint64(len(hooks)) {
		return name + " " + hooks[hook]
	}
	return fmt.Sprintf("%s hook %d", name, hook)
}
