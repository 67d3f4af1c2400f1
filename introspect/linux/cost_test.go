package linux

import (
	"context"
	"runtime"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/introspect"
)

// What a walk may cost, that does not depend on the machine: bytes that are read
// of the guest's memory and allocations, per object that is listed. Bytes are
// counted where the driver is asked for them, those of page tables among them;
// they and the allocations of a few objects of a small guest are what is spent
// once per listing.
func TestCostOfWalks(t *testing.T) {
	g := bootTruth(t, lab.Bookworm)
	if _, err := g.Command(t.Context(), "fork 200"); err != nil {
		t.Fatal(err)
	}
	if err := g.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer resume(t, g)
	ram := openRAM(t, g)
	for _, w := range []struct {
		name           string
		list           func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error)
		bytes, objects float64 // read, and allocated, per object
	}{
		{"Processes", func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error) {
			l, err := g.Processes(ctx, ProcessOptions{})
			return len(l.Processes), l.Coverage, err
		}, 7 << 10, 25},
		{"Modules", func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error) {
			l, err := g.Modules(ctx)
			return len(l.Modules), l.Coverage, err
		}, 12 << 10, 100},
		{"Files", func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error) {
			l, err := g.Files(ctx, FileOptions{})
			return len(l.Files), l.Coverage, err
		}, 2 << 10, 5},
		{"Sockets", func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error) {
			l, err := g.Sockets(ctx, SocketOptions{})
			return len(l.Sockets), l.Coverage, err
		}, 64 << 10, 100},
	} {
		t.Run(w.name, func(t *testing.T) {
			count := &counter{VM: ram}
			guest, err := Open(t.Context(), count, Options{})
			if err != nil {
				t.Fatal(err)
			}
			var n int
			var before, after runtime.MemStats
			for i := range 2 { // once for the tables of facts
				guest.Flush()
				count.bytes.Store(0)
				runtime.ReadMemStats(&before)
				var cov *introspect.Coverage
				n, cov, err = w.list(t.Context(), guest)
				runtime.ReadMemStats(&after)
				if err != nil || n == 0 || !cov.Complete() {
					t.Fatalf("round %d: %d listed, %v, %v", i, n, err, cov.Problems())
				}
			}
			bytes, objects := float64(count.bytes.Load())/float64(n), float64(after.Mallocs-before.Mallocs)/float64(n)
			t.Logf("%d listed: %.0f bytes read and %.1f allocations each", n, bytes, objects)
			if bytes > w.bytes {
				t.Errorf("%.0f bytes are read per object, want %.0f at most", bytes, w.bytes)
			}
			if objects > w.objects {
				t.Errorf("%.1f allocations per object, want %.1f at most", objects, w.objects)
			}
		})
	}
}
