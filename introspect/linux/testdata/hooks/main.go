// Command hooks runs in a guest of the lab: it makes eBPF programs, maps and
// links of many kinds, keys and timers, and prints what the guest's kernel
// itself says of them, one JSON object on one line. Then it waits for ever.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf/rlimit"
)

// truth is what is printed.
type truth struct {
	PID      int            `json:"pid"`
	Programs []program      `json:"programs"`
	Maps     []bpfMap       `json:"maps"`
	Links    []bpfLink      `json:"links"`
	Timers   map[string]any `json:"timers"`
	// Skipped is what this kernel has not, with the reason.
	Skipped map[string]string `json:"skipped"`
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == "symbols" {
		symbols(os.Args[2:])
		return
	}
	// What is made here must stay for as long as the guest is looked at: no
	// finalizer may close it.
	debug.SetGCPercent(-1)
	t := &truth{PID: os.Getpid(), Skipped: map[string]string{}, Timers: map[string]any{}}
	if err := run(t); err != nil {
		fmt.Println("HOOKS-FAILED", err)
		os.Exit(1)
	}
	b, err := json.Marshal(t)
	if err != nil {
		panic(err)
	}
	fmt.Printf("%s\n", b)
	for {
		time.Sleep(time.Hour)
	}
}

// symbols prints the lines of /proc/kallsyms that begin with one of addrs.
func symbols(addrs []string) {
	b, err := os.ReadFile("/proc/kallsyms")
	if err != nil {
		panic(err)
	}
	for line := range strings.Lines(string(b)) {
		if addr, _, _ := strings.Cut(line, " "); slices.Contains(addrs, addr) {
			fmt.Print(line)
		}
	}
}

func run(t *truth) error {
	if err := rlimit.RemoveMemlock(); err != nil { // until 5.11 maps count as locked memory
		return err
	}
	s := &scenario{truth: t, want: map[uint32]map[string]any{}, pins: map[string][]string{}}
	if err := s.makeMaps(); err != nil {
		return err
	}
	if err := s.makePrograms(); err != nil {
		return err
	}
	if err := s.tell(); err != nil {
		return err
	}
	if err := makeChains(); err != nil {
		return err
	}
	if err := makeTimers(t); err != nil {
		return err
	}
	return makeKeys()
}
