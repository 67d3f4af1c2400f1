package linux

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/internal/lab"
)

// The kernel's log is what /dev/kmsg gives in the guest, record for record: as it
// is after the boot, and after it has gone round several times.
func TestKernelLogOfGuests(t *testing.T) {
	for _, kind := range guestKinds() {
		t.Run(kind.String(), func(t *testing.T) {
			g := bootFacts(t, kind)
			boot := compareLog(t, g)
			if boot.Records[0].Seq == 0 && !strings.HasPrefix(boot.Records[0].Text, "Linux version ") {
				t.Errorf("the first record is %+v", boot.Records[0])
			}
			factsSays(t, g, "/lab/facts log 9000")
			wrapped := compareLog(t, g)
			if first := wrapped.Records[0].Seq; first < 1000 {
				t.Errorf("the log has not wrapped: it begins with record %d", first)
			}
		})
	}
}

// A log that is written while it is read is what its readers in the guest could
// have got: no record is torn, and none is out of its order.
func TestKernelLogOfLiveGuest(t *testing.T) {
	g := bootFacts(t, cloudGuest(lab.Trixie))
	guest := openLive(t, g)
	if _, err := g.Run(t.Context(), "/lab/facts log 200000 >/dev/null 2>&1 & echo $! >/tmp/writer"); err != nil {
		t.Fatal(err)
	}
	first, moved := uint64(0), 0
	for end := time.Now().Add(20 * time.Second); moved < 30; {
		if time.Now().After(end) {
			t.Fatal("nothing was written meanwhile")
		}
		l, err := guest.KernelLog(t.Context())
		if err != nil || !l.Coverage.Complete() {
			t.Fatal(err, l.Coverage.Problems())
		}
		if l.Records[0].Seq != first {
			first = l.Records[0].Seq
			moved++
		}
		last := uint64(0)
		for _, r := range l.Records {
			if r.Seq <= last && last != 0 {
				t.Fatalf("record %d comes after %d", r.Seq, last)
			}
			last = r.Seq
			var n int
			if _, err := fmt.Sscanf(r.Text, "facts %d ", &n); err == nil && !strings.Contains(r.Text, strings.Repeat("x", n*7%180)) {
				t.Fatalf("record %d is torn: %q", r.Seq, r.Text)
			}
		}
	}
	if _, err := g.Run(t.Context(), "kill $(cat /tmp/writer)"); err != nil {
		t.Fatal(err)
	}
}

// compareLog compares the log of g with what its readers get.
func compareLog(t *testing.T, g *lab.Guest) KernelLog {
	t.Helper()
	var l KernelLog
	var got, want []string
	for range 3 { // until nothing was printed between the two looks
		want = kmsgRecords(string(factsSays(t, g, "/lab/facts kmsg")))
		factsLook(t, g, func(guest *Guest) {
			var err error
			if l, err = guest.KernelLog(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
		if !l.Coverage.Complete() {
			t.Fatalf("%v", l.Coverage.Problems())
		}
		// Its readers do not see the last one yet when its line has no end.
		if n := len(l.Records); n > 0 && l.Records[n-1].Open {
			l.Records = l.Records[:n-1]
		}
		if got = got[:0]; len(l.Records) == len(want) {
			break
		}
	}
	caller := len(want) > 0 && strings.Contains(strings.SplitN(want[0], ";", 2)[0], "caller=")
	devices, lines := 0, 0
	for _, r := range l.Records {
		got = append(got, kmsgOf(r, caller))
		if r.Device != "" {
			devices++
		}
		if strings.Contains(r.Text, "\n") {
			lines++
		}
		if r.Open || r.Time.IsZero() || r.Caller == "" {
			t.Fatalf("%+v", r)
		}
	}
	t.Logf("%d records, %d of devices, %d of several lines, caller %v", len(got), devices, lines, caller)
	if len(got) != len(want) {
		t.Fatalf("%d records, the guest says %d", len(got), len(want))
	}
	wrong := 0
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("record %d:\n%q\nthe guest says\n%q", i, got[i], want[i])
			if wrong++; wrong == 5 {
				t.FailNow()
			}
		}
	}
	if l.Records[0].Seq == 0 && devices == 0 || l.Records[0].Seq != 0 && lines == 0 {
		t.Error("the log has not what is to be compared")
	}
	return l
}

// kmsgRecords splits what was read from /dev/kmsg: lines of a record's
// dictionary begin with a space.
func kmsgRecords(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, " ") && len(out) > 0 {
			out[len(out)-1] += line
		} else {
			out = append(out, line)
		}
	}
	return out
}

// kmsgOf writes r as the kernel does (msg_print_ext_header and -body in
// kernel/printk/printk.c).
func kmsgOf(r LogRecord, caller bool) string {
	var b strings.Builder
	flag := "-"
	if r.Continues {
		flag = "c"
	}
	fmt.Fprintf(&b, "%d,%d,%d,%s", int(r.Facility)<<3|int(r.Level), r.Seq, r.SinceBoot.Microseconds(), flag)
	if caller {
		b.WriteString(",caller=" + r.Caller)
	}
	b.WriteString(";")
	escape := func(s string) {
		for _, c := range []byte(s) {
			if c < ' ' || c >= 127 || c == '\\' {
				fmt.Fprintf(&b, `\x%02x`, c)
			} else {
				b.WriteByte(c)
			}
		}
		b.WriteByte('\n')
	}
	escape(r.Text)
	for _, d := range []struct{ key, value string }{{"SUBSYSTEM", r.Subsystem}, {"DEVICE", r.Device}} {
		if d.value != "" {
			escape(" " + d.key + "=" + d.value)
		}
	}
	return b.String()
}
