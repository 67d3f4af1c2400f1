package linux

import (
	"slices"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
)

// While mounts and interfaces come and go, those that stay are always told, and
// what was torn is said.
func TestFactsOfLiveGuest(t *testing.T) {
	for _, suite := range []lab.Suite{lab.Bookworm, lab.Sid} {
		t.Run(string(suite), func(t *testing.T) {
			g := bootFacts(t, cloudGuest(suite))
			guest := openLive(t, g)
			if _, err := g.Run(t.Context(), `
				mkdir -p /tmp/churn
				( while :; do
					mount -t tmpfs churn /tmp/churn; umount /tmp/churn
					ip link add churn0 type dummy; ip addr add 10.1.2.3/8 dev churn0; ip link del churn0
				done ) >/dev/null 2>&1 &
				echo $! > /tmp/churner`); err != nil {
				t.Fatal(err)
			}
			const looks = 200
			torn := 0
			for range looks {
				is, err := guest.Interfaces(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				ms, err := guest.Mounts(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				info, err := guest.Info(t.Context())
				if err != nil || info.Uptime <= 0 || info.OSVersion != "12.5" {
					t.Fatalf("%v: %+v", err, info)
				}
				whole := is.Coverage.Complete() && ms.Coverage.Complete() && info.Coverage.Complete()
				if !whole {
					torn++
					t.Log(is.Coverage.Problems(), ms.Coverage.Problems(), info.Coverage.Problems())
				}
				if whole && !slices.ContainsFunc(is.Interfaces, func(i Interface) bool { return i.Name == "lo" && len(i.Addresses) == 2 }) {
					t.Errorf("%+v", is.Interfaces)
				}
				if whole && !slices.ContainsFunc(ms.Mounts, func(m Mount) bool { return m.Target == "/sys/fs/cgroup" && m.FSType == "cgroup2" }) {
					t.Errorf("%+v", ms.Mounts)
				}
			}
			t.Logf("%d of %d looks were torn", torn, looks)
			if torn > looks/5 {
				t.Errorf("%d of %d looks were torn", torn, looks)
			}
			if _, err := g.Run(t.Context(), "kill $(cat /tmp/churner); sleep 1; umount /tmp/churn; ip link del churn0; true"); err != nil {
				t.Error(err)
			}
		})
	}
}
