package linux

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// The timers that a program has armed are found, with whose they are, and each
// one of /proc/timer_list whose time is far off.
func TestTimersOfGuests(t *testing.T) {
	for _, kind := range guestKinds() {
		t.Run(kind.String(), func(t *testing.T) {
			guest, truth := bootHooks(t, kind)
			// A worker's timer may fire between the look of the guest and ours.
			list, err := guest.Run(t.Context(), "cat /proc/timer_list")
			if err != nil {
				t.Fatal(err)
			}
			g := pausedHooks(t, guest)
			l, err := g.Timers(t.Context())
			if err != nil || !l.Coverage.Complete() {
				t.Fatal(err, l.Coverage.Problems())
			}
			var own []string
			got := map[string]bool{}
			wheel, works := 0, 0
			now := truth.Timers["now"]
			for _, x := range l.Timers {
				if x.Suspicious {
					t.Errorf("suspicious: %+v", x)
				}
				if x.Kind == "wheel" {
					wheel++
					if x.Work != nil {
						works++
					}
					// Debian's kernels have 250 jiffies in a second.
					if x.Left < -1000 || x.Left > 250*3600*24*40 {
						t.Errorf("%+v", x)
					}
					continue
				}
				got[fmt.Sprintf("%d %s %d", x.CPU, x.Function.Symbol, x.Expires)] = true
				if x.Function.Symbol == "timerfd_tmrproc" {
					x.PID = truth.PID // its file says whose it is
				}
				if x.PID != truth.PID || x.Function.Symbol == "hrtimer_wakeup" {
					continue
				}
				own = append(own, fmt.Sprint(x.Function.Symbol, " ", x.Clock, " ", (x.Expires/1e9-now+5)/10*10))
			}
			slices.Sort(own)
			want := []string{"it_real_fn monotonic 4000", "posix_timer_fn boottime 4010", "posix_timer_fn monotonic 4010", "timerfd_tmrproc monotonic 4000"}
			if !slices.Equal(own, want) {
				t.Errorf("timers of the program %q, want %q", own, want)
			}
			compared := compareTimerList(t, list, got)
			if wheel < 5 || works < 2 || compared < 4 {
				t.Errorf("%d timers in the wheel, %d of works, %d compared", wheel, works, compared)
			}
			t.Logf("%d timers, %d in the wheel, %d of works; %d compared", len(l.Timers), wheel, works, compared)
		})
	}
}

// compareTimerList looks for each high-resolution timer of /proc/timer_list that
// is more than a minute off in got, and returns how many there are:
//
//	cpu: 0
//	 #0: <00000000d1d2d3d4>, it_real_fn, S:01
//	 # expires at 4003000000000-4003000000000 nsecs [in 1 to 2 nsecs]
func compareTimerList(t *testing.T, list string, got map[string]bool) (compared int) {
	t.Helper()
	cpu, fn := -1, ""
	for line := range strings.Lines(list) {
		line = strings.TrimSpace(line)
		var soft, hard, from, to int64
		switch {
		case strings.HasPrefix(line, "cpu: "):
			fmt.Sscanf(line, "cpu: %d", &cpu) //nolint:errcheck // told by what is missing
		case strings.HasPrefix(line, "#") && strings.Contains(line, ": <"):
			fn = strings.TrimSpace(strings.Split(line, ",")[1])
		case strings.HasPrefix(line, "# expires at"):
			if n, _ := fmt.Sscanf(line, "# expires at %d-%d nsecs [in %d to %d nsecs]", &soft, &hard, &from, &to); n != 4 || to < 60e9 {
				continue
			}
			compared++
			if key := fmt.Sprintf("%d %s %d", cpu, fn, hard); !got[key] {
				t.Errorf("no timer %q", key)
			}
		}
	}
	return compared
}

// Timers of a Debian 11 guest that had run for eight minutes: their times were
// over, and their bucket's was not.
func TestBucketEnd(t *testing.T) {
	const clk = 4295016191
	for _, expires := range []uint64{4295012936, 4295014235} {
		if end := bucketEnd(expires, 4*64+11); end != 4295016448 || end < clk {
			t.Errorf("%d: the wheel fires it at %d", expires, end)
		}
	}
	if end := bucketEnd(1000, 41); end != 1001 {
		t.Errorf("in the finest level a timer of 1000 fires at %d", end)
	}
}
