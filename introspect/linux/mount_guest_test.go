package linux

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Mounts are what /proc/PID/mountinfo says, of the first process and of one in
// a mount namespace of its own.
func TestMountsOfGuests(t *testing.T) {
	for _, kind := range guestKinds() {
		t.Run(kind.String(), func(t *testing.T) {
			g := bootFacts(t, kind)
			text := string(factsSays(t, g, `
				mkdir -p /tmp/m/sub/deep /tmp/m/ro "/tmp/m/with space" /tmp/m/gone /tmp/m/at /tmp/m/over
				mount -t tmpfs -o nosuid,nodev,noexec,noatime,size=1m "what was said" "/tmp/m/with space"
				mount -t tmpfs -o ro,sync,nodiratime tmpfs /tmp/m/ro
				mkdir "/tmp/m/with space/part"
				mount --bind "/tmp/m/with space/part" /tmp/m/sub/deep
				mount -o remount,bind,ro /tmp/m/sub/deep
				mount --bind /tmp/m/gone /tmp/m/at
				rmdir /tmp/m/gone
				mkdir /tmp/m/lower /tmp/m/upper /tmp/m/work
				mount -t overlay overlay -o lowerdir=/tmp/m/lower,upperdir=/tmp/m/upper,workdir=/tmp/m/work /tmp/m/over
				unshare -m sh -c 'umount /tmp/m/ro; mount -t tmpfs inner /mnt; exec sleep 100000' >/dev/null 2>&1 </dev/null &
				until [ -n "$(pidof sleep)" ] && grep -q inner /proc/$(pidof sleep)/mountinfo; do usleep 50000; done
				cat /proc/1/mountinfo
				echo
				pidof sleep
				readlink /proc/$(pidof sleep)/ns/mnt
				cat /proc/$(pidof sleep)/mountinfo`))
			first, second, _ := strings.Cut(text, "\n\n")
			head := strings.SplitN(second, "\n", 3)
			factsLook(t, g, func(guest *Guest) {
				l, err := guest.Mounts(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				compareMounts(t, l, first)
				ps, err := guest.Processes(t.Context(), ProcessOptions{})
				if err != nil {
					t.Fatal(err)
				}
				i := slices.IndexFunc(ps.Processes, func(p Process) bool { return strconv.Itoa(p.PID) == head[0] })
				if i < 0 {
					t.Fatalf("no process %q", head[0])
				}
				if l, err = guest.ProcessMounts(t.Context(), ps.Processes[i]); err != nil {
					t.Fatal(err)
				}
				compareMounts(t, l, head[2])
				if got := fmt.Sprintf("mnt:[%d]", l.Mounts[0].Namespace); got != head[1] {
					t.Errorf("namespace %s, want %s", got, head[1])
				}
			})
			if _, err := g.Run(t.Context(), "kill $(pidof sleep); for m in over at sub/deep ro 'with space'; do umount \"/tmp/m/$m\"; done; rm -r /tmp/m"); err != nil {
				t.Error(err)
			}
		})
	}
}

func compareMounts(t *testing.T, l MountList, mountinfo string) {
	t.Helper()
	if !l.Coverage.Complete() {
		t.Error(l.Coverage.Problems())
	}
	got := map[string]string{}
	for _, m := range l.Mounts {
		got[strconv.Itoa(m.ID)] = fmt.Sprintf("%d %s %q %q %s %q %q", m.ParentID, m.Device, m.Root, m.Target, m.Options, m.FSType, m.Source)
	}
	n := 0
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line)
		i := slices.Index(f, "-")
		if i < 6 || len(f) != i+4 {
			t.Fatalf("the guest said %q", line)
		}
		want := fmt.Sprintf("%s %s %q %q %s %q %q", f[1], f[2], unescapeMount(f[3]), unescapeMount(f[4]), f[5], unescapeMount(f[i+1]), unescapeMount(f[i+2]))
		if got[f[0]] != want {
			t.Errorf("mount %s: %s\nthe guest says %s", f[0], got[f[0]], want)
		}
		j := slices.IndexFunc(l.Mounts, func(m Mount) bool { return strconv.Itoa(m.ID) == f[0] })
		if j >= 0 && f[i+3] != l.Mounts[j].SuperOptions && !strings.HasPrefix(f[i+3], l.Mounts[j].SuperOptions+",") {
			t.Errorf("mount %s: options %s, the guest says %s", f[0], l.Mounts[j].SuperOptions, f[i+3])
		}
		delete(got, f[0])
		n++
	}
	// What a process's root directory does not show is there too.
	t.Logf("%d mounts; others: %v", n, got)
	if n < 10 || len(got) > 1 {
		t.Errorf("%d mounts; others: %v", n, got)
	}
}

// unescapeMount undoes \NNN.
func unescapeMount(s string) string {
	for _, c := range []byte(" \t\n\\") {
		s = strings.ReplaceAll(s, fmt.Sprintf(`\%03o`, c), string(c))
	}
	return s
}
