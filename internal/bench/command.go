package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// sample is one finished command.
type sample struct {
	wall time.Duration
	cpu  time.Duration
	anon uint64 // the most anonymous memory that was seen resident, bytes
}

// command runs args; statuses other than those allowed are errors. Its memory
// is sampled from /proc every few milliseconds: the file that it maps is not
// its own, so the kernel's maximum over both would say nothing.
func command(ctx context.Context, allowed []int, args ...string) (sample, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return sample{}, err
	}
	stop, peak := make(chan struct{}), make(chan uint64)
	go func() { peak <- watchAnon(cmd.Process.Pid, stop) }()
	err := cmd.Wait()
	s := sample{wall: time.Since(start)}
	close(stop)
	s.anon = <-peak
	if cmd.ProcessState == nil || !slices.Contains(allowed, cmd.ProcessState.ExitCode()) {
		return s, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	s.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return s, nil
}

func watchAnon(pid int, stop <-chan struct{}) (peak uint64) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err == nil {
			for line := range strings.Lines(string(b)) {
				if v, ok := strings.CutPrefix(line, "RssAnon:"); ok {
					kb, _ := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 64)
					peak = max(peak, kb<<10)
				}
			}
		}
		select {
		case <-stop:
			return peak
		case <-tick.C:
		}
	}
}

// inTurn runs the commands in turn, A B A B …, after one round that is not
// counted, and returns their samples.
func inTurn(runs int, cmds ...func() (sample, error)) ([][]sample, error) {
	out := make([][]sample, len(cmds))
	for i := range runs + 1 {
		for c, do := range cmds {
			s, err := do()
			if err != nil {
				return nil, err
			}
			if i > 0 {
				out[c] = append(out[c], s)
			}
		}
	}
	return out, nil
}

func medianWall(ss []sample) time.Duration {
	ds := make([]time.Duration, len(ss))
	for i, s := range ss {
		ds[i] = s.wall
	}
	slices.Sort(ds)
	return ds[len(ds)/2]
}

// medianRatio is the median of a's wall time over b's, pair by pair: a machine
// that gets slower slows both of a pair.
func medianRatio(a, b []sample) float64 {
	rs := make([]float64, len(a))
	for i := range a {
		rs[i] = a[i].wall.Seconds() / b[i].wall.Seconds()
	}
	slices.Sort(rs)
	return rs[len(rs)/2]
}

func maxAnon(ss []sample) uint64 {
	var m uint64
	for _, s := range ss {
		m = max(m, s.anon)
	}
	return m
}
