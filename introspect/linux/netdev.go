package linux

import (
	"encoding/json"
	"net/netip"
	"strconv"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// Interface is a network interface of the guest.
type Interface struct {
	// Namespace is the inode number of its network namespace, as in the links
	// /proc/PID/ns/net. InitNamespace: it is the one that the guest booted with.
	Namespace     uint32 `json:"net_namespace"`
	InitNamespace bool   `json:"init_namespace"`
	Index         int    `json:"index"`
	Name          string `json:"name"`
	// Type is the kind of link layer: "ether", "loopback", "none", or its number
	// (ARPHRD_, include/uapi/linux/if_arp.h).
	Type string `json:"type"`
	// MAC is the address of the link layer, of up to 32 bytes; empty where there
	// is none.
	MAC string `json:"mac"`
	MTU int    `json:"mtu"` // bytes
	// Flags are the names of IFF_ flags (include/uapi/linux/if.h) that the kernel
	// keeps: "UP", "BROADCAST", "PROMISC", …. RUNNING and the like are not kept.
	Flags []string `json:"flags"`
	Up    bool     `json:"up"` // IFF_UP
	// State is RFC 2863's operational state as in /sys/class/net/NAME/operstate:
	// "up", "down", "unknown", ….
	State string `json:"state"`
	// Addresses are those of IPv4, then those of IPv6, each sorted, with the
	// length of their prefix.
	Addresses []netip.Prefix `json:"addresses"`
	// KernelAddress is where the struct net_device lies.
	KernelAddress hypervisor.VirtAddr `json:"kernel_address"`
}

// MarshalJSON writes i with its strings made valid: see the package comment.
func (i Interface) MarshalJSON() ([]byte, error) {
	type plain Interface
	q := plain(i)
	q.Name = jsonText(i.Name)
	return json.Marshal(q)
}

// InterfaceList is what Interfaces found: those of the first network namespace
// come first, then by the namespace's number; in each by index.
type InterfaceList struct {
	Interfaces []Interface
	Coverage   *introspect.Coverage
}

// A flag of an interface (include/uapi/linux/if.h).
const iffUp = 1 << 0

// netFlags are the names of flags, by their bit.
var netFlags = [...]string{
	"UP", "BROADCAST", "DEBUG", "LOOPBACK", "POINTOPOINT", "NOTRAILERS", "RUNNING", "NOARP", "PROMISC", "ALLMULTI",
	"MASTER", "SLAVE", "MULTICAST", "PORTSEL", "AUTOMEDIA", "DYNAMIC", "LOWER_UP", "DORMANT", "ECHO",
}

func netFlagNames(flags uint64) []string {
	out := []string{}
	for bit, name := range netFlags {
		if flags>>bit&1 != 0 {
			out = append(out, name)
		}
	}
	return out
}

// Kinds of link layers (include/uapi/linux/if_arp.h).
const (
	arphrdEther    = 1
	arphrdLoopback = 772
)

var netTypes = map[uint64]string{
	arphrdEther: "ether", arphrdLoopback: "loopback", 32: "infiniband", 256: "slip", 280: "can", 512: "ppp",
	768: "ipip", 769: "tunnel6", 776: "sit", 778: "gre", 783: "irda", 801: "ieee802.11", 803: "ieee802.11/radiotap",
	823: "gre6", 824: "netlink", 65534: "none",
}

func netType(n uint64) string {
	if name, ok := netTypes[n]; ok {
		return name
	}
	return strconv.FormatUint(n, 10)
}

// netStates are the names of states (include/uapi/linux/if.h: IF_OPER_, and
// operstates in net/core/net-sysfs.c).
var netStates = [...]string{"unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up"}

// linkStateStart is the bit of net_device.state that says that the interface has
// been opened (__LINK_STATE_START, include/linux/netdevice.h).
const linkStateStart = 1

func netState(oper, state uint64) string {
	if state&linkStateStart == 0 {
		return "down"
	}
	if oper < uint64(len(netStates)) {
		return netStates[oper]
	}
	return strconv.FormatUint(oper, 10)
}
