package linux

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// netTruth prints what a network namespace's own tools say of it.
const netTruth = `
	readlink /proc/self/ns/net
	for d in /sys/class/net/*; do
		echo dev $(basename $d) $(cat $d/ifindex) $(cat $d/address) $(cat $d/mtu) $(cat $d/flags) $(cat $d/operstate) $(cat $d/type)
	done
	ip -o -4 addr | sed 's/^/ip4 /'
	sed 's/^/ip6 /' /proc/net/if_inet6`

// Interfaces are what the guest's tools say, in two network namespaces.
func TestInterfacesOfGuests(t *testing.T) {
	for _, kind := range guestKinds() {
		t.Run(kind.String(), func(t *testing.T) {
			g := bootFacts(t, kind)
			setup := `
				ip link add facts0 type dummy
				ip link set facts0 mtu 1400 address 02:00:00:00:00:17 promisc on
				ip link set facts0 up
				ip addr add 192.0.2.1/24 dev facts0
				ip addr add 192.0.2.2/24 dev facts0
				ip addr add 198.51.100.7/32 dev facts0
				ip -6 addr add 2001:db8::17/64 dev facts0
				ip link add facts1 type dummy
			` + netTruth + `
				cat > /tmp/other.sh <<'EOF'
					mount -t sysfs sysfs /sys
					ip link set lo up
					ip link add inner type dummy
					ip link set inner up
					ip addr add 10.9.8.7/8 dev inner` + strings.ReplaceAll(netTruth, "\n", "\n\t\t\t\t\t") + `
					exec sleep 100000 >/dev/null </dev/null
EOF
				unshare -n -m sh /tmp/other.sh > /tmp/other.out 2>/dev/null &
				until [ -n "$(pidof sleep)" ]; do usleep 50000; done
				cat /tmp/other.out`
			want := interfacesSaid(t, string(factsSays(t, g, setup)))
			var got []string
			factsLook(t, g, func(guest *Guest) {
				l, err := guest.Interfaces(t.Context())
				if err != nil || !l.Coverage.Complete() {
					t.Fatal(err, l.Coverage.Problems())
				}
				if !l.Interfaces[0].InitNamespace || l.Interfaces[0].Name != "lo" || l.Interfaces[len(l.Interfaces)-1].InitNamespace {
					t.Errorf("%+v", l.Interfaces)
				}
				for _, i := range l.Interfaces {
					got = append(got, fmt.Sprintf("%d %s %d %s %d %v %s %s %v", i.Namespace, i.Name, i.Index, i.MAC, i.MTU, i.Flags, i.State, i.Type, i.Addresses))
				}
			})
			slices.Sort(got)
			if len(want) < 5 || !slices.Equal(got, want) {
				t.Errorf("interfaces\n%s\nthe guest says\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			t.Logf("%s", strings.Join(got, "\n"))
			if _, err := g.Run(t.Context(), "kill $(pidof sleep); ip link del facts0; ip link del facts1"); err != nil {
				t.Error(err)
			}
		})
	}
}

// interfacesSaid decodes what netTruth printed.
func interfacesSaid(t *testing.T, text string) []string {
	t.Helper()
	type device struct {
		line string
		ips  []netip.Prefix
	}
	var out []string
	var ns string
	devices := map[string]*device{}
	flush := func() {
		for _, d := range devices {
			slices.SortFunc(d.ips, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
			out = append(out, fmt.Sprintf("%s %v", d.line, d.ips))
		}
		clear(devices)
	}
	number := func(s string, base int) uint64 {
		n, err := strconv.ParseUint(s, base, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) == 1 && strings.HasPrefix(f[0], "net:["):
			flush()
			ns = strings.Trim(f[0], "net:[]")
		case len(f) == 8 && f[0] == "dev":
			devices[f[1]] = &device{line: fmt.Sprintf("%s %s %s %s %s %v %s %s", ns, f[1], f[2], f[3], f[4],
				netFlagNames(number(f[5], 0)), f[6], netType(number(f[7], 10)))}
		case len(f) > 4 && f[0] == "ip4":
			devices[f[2]].ips = append(devices[f[2]].ips, netip.MustParsePrefix(f[4]))
		case len(f) == 7 && f[0] == "ip6":
			b, err := hex.DecodeString(f[1])
			if err != nil {
				t.Fatal(err)
			}
			ip, _ := netip.AddrFromSlice(b)
			devices[f[6]].ips = append(devices[f[6]].ips, netip.PrefixFrom(ip, int(number(f[3], 16))))
		default:
			t.Fatalf("the guest said %q", line)
		}
	}
	flush()
	slices.Sort(out)
	return out
}
