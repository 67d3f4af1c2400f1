package policy

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/event"
	defaultpolicy "github.com/vantage-vmi/vantage/rules/policy"
)

// BenchmarkDecide measures the default policy with allow lists of 100, 1,000
// and 10,000 entries each. A finding on the list passes through most rules.
func BenchmarkDecide(b *testing.B) {
	for _, scale := range []int{1, 10, 100} {
		findings, modules, processes, never := map[string]any{}, map[string]any{}, map[string]any{}, map[string]any{}
		for i := range 100 * scale {
			entry := []any{map[string]any{"vm": fmt.Sprintf("vm-%d", i), "exe": "/bin/x"}}
			findings[fmt.Sprintf("Rule_%d", i)] = entry
			modules[fmt.Sprintf("mod_%d", i)] = entry
			processes[fmt.Sprintf("proc_%d", i)] = entry
			never[fmt.Sprintf("vm-%d", i)] = true
		}
		data := map[string]any{"vantage": map[string]any{"allow": map[string]any{
			"findings": findings, "modules": modules, "processes": processes, "never_pause": never,
		}}}
		b.Run(fmt.Sprintf("data=%dx", scale), func(b *testing.B) {
			e := newEngine(b, Options{Source: Source{FS: defaultpolicy.FS(), Data: data}})
			ev := finding("high")
			ev.Finding.Rule = "Rule_42"
			took := make([]time.Duration, 0, 1<<16)
			for b.Loop() {
				start := time.Now()
				if d := e.Decide(context.Background(), ev); d.Err != nil || d.Verdict != Malicious {
					b.Fatalf("%v %+v", d.Err, d)
				}
				if len(took) < cap(took) {
					took = append(took, time.Since(start))
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
		})
	}
	b.Run("parallel", func(b *testing.B) {
		e := newEngine(b, Options{Source: Source{FS: defaultpolicy.FS()}})
		b.RunParallel(func(pb *testing.PB) {
			ev := finding("high")
			for pb.Next() {
				if d := e.Decide(context.Background(), ev); d.Err != nil {
					b.Error(d.Err)
				}
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
	})
}

func BenchmarkLoad(b *testing.B) {
	for b.Loop() {
		if _, err := load(context.Background(), Source{FS: defaultpolicy.FS()}, builtinResponses()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkExecute(b *testing.B) {
	x := NewExecutor(ExecutorOptions{Responders: Library(func(context.Context, Response, *event.Event) error { return nil }, newFakeVMs())})
	d, ev := decisionOf("alert", "pause"), finding("high")
	for b.Loop() {
		x.Execute(context.Background(), d, ev)
	}
}
