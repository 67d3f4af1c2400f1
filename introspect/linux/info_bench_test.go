package linux

import (
	"context"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/introspect"
)

// BenchmarkFacts reads the facts of a guest as a whole, next to a listing of its
// processes.
func BenchmarkFacts(b *testing.B) {
	g := bootFacts(b, cloudGuest(lab.Trixie))
	if err := g.Pause(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer resume(b, g)
	guest, err := Open(b.Context(), openRAM(b, g), Options{})
	if err != nil {
		b.Fatal(err)
	}
	for name, run := range map[string]func(context.Context) (*introspect.Coverage, error){
		"Processes": func(ctx context.Context) (*introspect.Coverage, error) {
			l, err := guest.Processes(ctx, ProcessOptions{})
			return l.Coverage, err
		},
		"Info": func(ctx context.Context) (*introspect.Coverage, error) {
			i, err := guest.Info(ctx)
			return i.Coverage, err
		},
		"Interfaces": func(ctx context.Context) (*introspect.Coverage, error) {
			l, err := guest.Interfaces(ctx)
			return l.Coverage, err
		},
		"Mounts": func(ctx context.Context) (*introspect.Coverage, error) {
			l, err := guest.Mounts(ctx)
			return l.Coverage, err
		},
		"KernelLog": func(ctx context.Context) (*introspect.Coverage, error) {
			l, err := guest.KernelLog(ctx)
			return l.Coverage, err
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if cov, err := run(b.Context()); err != nil || !cov.Complete() {
					b.Fatal(err, cov.Problems())
				}
			}
		})
	}
}
