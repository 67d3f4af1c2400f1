package lab_test

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestDemoInitHoldsNoPayload(t *testing.T) {
	for _, infected := range []bool{false, true} {
		if s := lab.DemoInit(infected, "web-1"); strings.Contains(s, lab.DemoPayloadPrefix) || strings.Contains(s, "PAYLOAD") {
			t.Errorf("infected=%v: the script holds the payload in plain", infected)
		}
	}
}

func TestDemoGuests(t *testing.T) {
	k := labtest.Kernel(t, lab.Bookworm)
	for _, infected := range []bool{false, true} {
		t.Run(fmt.Sprintf("infected=%v", infected), func(t *testing.T) {
			g := labtest.Boot(t, lab.Config{
				Name: "demo", Kernel: k, Shared: true, KASLR: true, Memory: 256 * lab.MiB,
				Init: lab.DemoInit(infected, "web-1"),
			})
			if strings.Contains(g.Console(), lab.DemoPayloadPrefix) {
				t.Error("the console shows the payload")
			}
			ps, err := g.Run(t.Context(), "hostname; ps -o pid,user,comm,args | grep -v '\\]$'")
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("\n%s", ps)
			if !strings.HasPrefix(ps, "web-1\n") || strings.Count(ps, "nginx") < 3 || strings.Count(ps, "postgres") < 3 {
				t.Errorf("processes:\n%s", ps)
			}
			ram := string(openRAM(t, g))
			var at []uint64
			for i := 0; ; {
				j := strings.Index(ram[i:], lab.DemoPayloadPrefix)
				if j < 0 {
					break
				}
				i += j + 1
				at = append(at, uint64(i-1))
			}
			if !infected {
				if len(at) != 0 {
					t.Errorf("the payload is in the memory of a guest that is not infected: %#x", at)
				}
				return
			}
			frames := anonymousFrames(t, g, lab.DemoInfectedComm)
			t.Logf("payload at %#x; %d anonymous pages", at, len(frames))
			whole := false
			for _, pa := range at {
				if !frames[pa>>12] {
					t.Errorf("the payload is at gpa %#x, in no anonymous page of the infected process", pa)
				}
				whole = whole || strings.HasPrefix(ram[pa:], lab.DemoPayload)
			}
			if !whole {
				t.Error("the payload is not in memory")
			}
		})
	}
}

// anonymousFrames returns the frame numbers of a process's anonymous writable
// mappings, as the guest's own /proc tells them.
func anonymousFrames(t *testing.T, g *lab.Guest, comm string) map[uint64]bool {
	t.Helper()
	maps, err := g.Run(t.Context(), "cat /proc/$(pidof "+comm+")/maps")
	if err != nil {
		t.Fatal(err)
	}
	frames := map[uint64]bool{}
	for line := range strings.Lines(maps) {
		var start, end uint64
		var perms, off, dev string
		var inode int
		var name string
		r, rest, _ := strings.Cut(line, " ")
		a, b, _ := strings.Cut(r, "-")
		start, _ = strconv.ParseUint(a, 16, 64)
		end, _ = strconv.ParseUint(b, 16, 64)
		if n, _ := fmt.Sscan(rest, &perms, &off, &dev, &inode, &name); n < 4 || inode != 0 || !strings.HasPrefix(perms, "rw") {
			continue
		}
		out, err := g.Run(t.Context(), fmt.Sprintf(
			"dd if=/proc/$(pidof %s)/pagemap bs=8 skip=%d count=%d 2>/dev/null | xxd -p | tr -d '\\n'", comm, start>>12, (end-start)>>12))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := hex.DecodeString(strings.TrimSpace(out))
		if err != nil {
			t.Fatal(err)
		}
		for ; len(raw) >= 8; raw = raw[8:] {
			var v uint64
			for i := range 8 {
				v |= uint64(raw[i]) << (8 * i)
			}
			if v>>63 == 1 {
				frames[v&(1<<55-1)] = true
			}
		}
	}
	return frames
}
