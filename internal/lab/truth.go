package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// SecretPrefix is what the secrets that the truth program puts into memory
// begin with. Only the pages that Made.Facts tell of hold it together with a
// secret's name: neither the guest's files nor its serial line do.
const SecretPrefix = "VANTAGE-SECRET-"

// Truth is what a guest says of itself: what its own /proc holds, and what the
// truth program knows that it made. See guest/make.c for what that is.
type Truth struct {
	System      System
	IOMem       []IOMem
	Modules     []GuestModule // in the order of /proc/modules: newest first
	Symbols     []Symbol      // a choice; see guest/report.c
	SymbolCount int           // lines of /proc/kallsyms
	Processes   []Process     // all, kernel threads too, by PID
	Made        []Made        // the chosen ones, in the order of their making
	Mappings    []Mapping     // of the chosen ones: /proc/PID/maps
	Pages       []Page        // some pages of the chosen ones: /proc/PID/pagemap
}

// System is what holds for the guest as a whole.
type System struct {
	Version  Bytes `json:"version"` // /proc/version
	Cmdline  Bytes `json:"cmdline"` // /proc/cmdline
	Release  Bytes `json:"release"` // uname -r
	Hostname Bytes `json:"hostname"`
	BTime    int64 `json:"btime"`       // Unix seconds; of /proc/stat
	ClkTck   int64 `json:"clk_tck"`     // ticks a second of Process.StartTicks
	Realtime int64 `json:"realtime_ns"` // CLOCK_REALTIME when the guest was asked
	Boottime int64 `json:"boottime_ns"` // CLOCK_BOOTTIME of the same moment
	CPUs     int   `json:"cpus"`
}

// Process is one process as the guest's /proc showed it.
type Process struct {
	PID        int               `json:"pid"`
	PPID       int               `json:"ppid"`
	TGID       int               `json:"tgid"`
	NSPID      int               `json:"ns_pid"` // in its own PID namespace
	State      string            `json:"state"`
	StartTicks uint64            `json:"start_ticks"` // since boot
	KThread    bool              `json:"kthread"`
	Label      string            `json:"label"` // of Made; empty for others
	UIDs       [4]uint32         `json:"uids"`  // real, effective, saved, filesystem
	GIDs       [4]uint32         `json:"gids"`
	Comm       Bytes             `json:"comm"`
	Exe        Bytes             `json:"exe"`     // empty for kernel threads and zombies
	Root       Bytes             `json:"root"`    // /proc/PID/root
	Cgroup     Bytes             `json:"cgroup"`  // "0::/path"
	Cmdline    Bytes             `json:"cmdline"` // /proc/PID/cmdline, NULs and all
	Namespaces map[string]uint64 `json:"namespaces"`
	Threads    []Thread          `json:"threads"` // without the leader
}

// Thread is a thread other than a process's leader.
type Thread struct {
	TID  int   `json:"tid"`
	Comm Bytes `json:"comm"`
}

// Args returns the arguments in Cmdline.
func (p Process) Args() []string {
	if p.Cmdline == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(p.Cmdline), "\x00"), "\x00")
}

// CgroupPath returns the path in the cgroup2 hierarchy.
func (p Process) CgroupPath() string { return strings.TrimPrefix(string(p.Cgroup), "0::") }

// Start returns when p started, as exactly as ticks allow; the zero time when
// the guest did not say how long a tick is.
func (s System) Start(p Process) time.Time {
	if s.ClkTck <= 0 {
		return time.Time{}
	}
	since := time.Duration(p.StartTicks) * time.Second / time.Duration(s.ClkTck)
	return time.Unix(0, s.Realtime-s.Boottime).Add(since).UTC()
}

// Made is a process that the truth program made, and what that process says of
// itself: "crossing_secret" is a secret's text without SecretPrefix and
// "crossing_secret_addr" where in the process it is, and so on for others.
type Made struct {
	PID   int
	Label string
	Facts map[string]string
}

// Secret is a known text in a process's memory.
type Secret struct {
	Name string // "crossing"
	Text string // with SecretPrefix
	Addr uint64 // virtual address of its first byte
}

// Secrets returns the secrets in m's memory, by name.
func (m Made) Secrets() map[string]Secret {
	out := map[string]Secret{}
	for k, v := range m.Facts {
		if name, ok := strings.CutSuffix(k, "_secret"); ok {
			addr, _ := strconv.ParseUint(m.Facts[k+"_addr"], 0, 64)
			out[name] = Secret{Name: name, Text: SecretPrefix + v, Addr: addr}
		}
	}
	return out
}

// Addr returns the fact of that name as an address, 0 when there is none.
func (m Made) Addr(fact string) uint64 {
	v, _ := strconv.ParseUint(m.Facts[fact], 0, 64)
	return v
}

// GuestModule is a line of /proc/modules.
type GuestModule struct {
	Name  string `json:"name"`
	Size  uint64 `json:"size"` // bytes
	Refs  int    `json:"refs"`
	State string `json:"state"`
	Base  Hex    `json:"base"`
}

// Symbol is a line of /proc/kallsyms.
type Symbol struct {
	Name   string `json:"name"`
	Addr   Hex    `json:"addr"`
	Type   string `json:"type"`
	Module string `json:"module"` // empty for the kernel itself
	Count  int    `json:"count"`  // how many symbols have this name
}

// IOMem is a line of /proc/iomem: System RAM and the kernel in it.
type IOMem struct {
	Name  string `json:"name"`
	Start Hex    `json:"start"` // guest-physical
	End   Hex    `json:"end"`   // inclusive
}

// Mapping is a line of /proc/PID/maps. Path is escaped as there ("\012").
type Mapping struct {
	PID    int    `json:"pid"`
	Start  Hex    `json:"start"`
	End    Hex    `json:"end"` // exclusive
	Perms  string `json:"perms"`
	Offset Hex    `json:"offset"`
	Inode  uint64 `json:"inode"`
	Path   Bytes  `json:"path"`
}

// Page says where a page of a process is.
type Page struct {
	PID  int `json:"pid"`
	Virt Hex `json:"virt"`
	Phys Hex `json:"phys"`
}

// Bytes is a string of any bytes. The guest writes each byte as the character
// of that number.
type Bytes string

// UnmarshalJSON reads what the guest wrote.
func (b *Bytes) UnmarshalJSON(text []byte) error {
	var s string
	if err := json.Unmarshal(text, &s); err != nil {
		return err
	}
	out := make([]byte, 0, len(s))
	for _, r := range s {
		if r > 0xff {
			return fmt.Errorf("character %#x is no byte", r)
		}
		out = append(out, byte(r))
	}
	*b = Bytes(out)
	return nil
}

// Hex is an address, written as a string.
type Hex uint64

// UnmarshalJSON reads "0x…".
func (h *Hex) UnmarshalJSON(text []byte) error {
	v, err := strconv.ParseUint(strings.Trim(string(text), `"`), 0, 64)
	*h = Hex(v)
	return err
}

// Truth returns what the guest said of itself when it came up. It needs a guest
// with Config.Program.
func (g *Guest) Truth() (*Truth, error) {
	g.truthOnce.Do(func() {
		_, text, ok := strings.Cut(g.Console(), "VANTAGE-TRUTH-BEGIN\n")
		if ok {
			text, _, ok = strings.Cut(text, "VANTAGE-TRUTH-END\n")
		}
		if !ok {
			g.truthErr = g.failure(fmt.Errorf("the truth program did not finish (Config.Program?)"))
			return
		}
		g.truth, g.truthErr = ParseTruth(text)
	})
	return g.truth, g.truthErr
}

// TruthNow asks the guest again. It needs a guest with Config.Program.
func (g *Guest) TruthNow(ctx context.Context) (*Truth, error) {
	text, err := g.Command(ctx, "truth")
	if err != nil {
		return nil, err
	}
	return ParseTruth(text)
}

// Processes asks the guest for its processes. It needs a guest with
// Config.Program.
func (g *Guest) Processes(ctx context.Context) ([]Process, error) {
	text, err := g.Command(ctx, "ps")
	if err != nil {
		return nil, err
	}
	t, err := ParseTruth(text)
	if err != nil {
		return nil, err
	}
	return t.Processes, nil
}

// ParseTruth parses lines that the truth program printed.
func ParseTruth(text string) (*Truth, error) {
	t := &Truth{}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "{") {
			continue
		}
		if err := t.add([]byte(line)); err != nil {
			return nil, fmt.Errorf("truth: %w in line %q", err, line)
		}
	}
	return t, nil
}

func (t *Truth) add(line []byte) error {
	var kind struct {
		Kind    string `json:"kind"`
		Symbols int    `json:"symbols"`
	}
	if err := json.Unmarshal(line, &kind); err != nil {
		return err
	}
	switch kind.Kind {
	case "system":
		return json.Unmarshal(line, &t.System)
	case "kallsyms":
		t.SymbolCount = kind.Symbols
		return nil
	case "iomem":
		return appendJSON(&t.IOMem, line)
	case "module":
		return appendJSON(&t.Modules, line)
	case "symbol":
		return appendJSON(&t.Symbols, line)
	case "process":
		return appendJSON(&t.Processes, line)
	case "mapping":
		return appendJSON(&t.Mappings, line)
	case "page":
		return appendJSON(&t.Pages, line)
	case "made":
		m := Made{Facts: map[string]string{}}
		d := json.NewDecoder(bytes.NewReader(line))
		d.UseNumber()
		var all map[string]any
		if err := d.Decode(&all); err != nil {
			return err
		}
		for k, v := range all {
			m.Facts[k] = fmt.Sprint(v)
		}
		m.Label = m.Facts["label"]
		m.PID, _ = strconv.Atoi(m.Facts["pid"])
		t.Made = append(t.Made, m)
		return nil
	}
	return fmt.Errorf("unknown kind %q", kind.Kind)
}

func appendJSON[T any](to *[]T, line []byte) error {
	var v T
	if err := json.Unmarshal(line, &v); err != nil {
		return err
	}
	*to = append(*to, v)
	return nil
}

// Process returns the process with a PID.
func (t *Truth) Process(pid int) (Process, bool) {
	for _, p := range t.Processes {
		if p.PID == pid {
			return p, true
		}
	}
	return Process{}, false
}

// ByLabel returns the process that was made under a label ("docker").
func (t *Truth) ByLabel(label string) (Process, bool) {
	for _, p := range t.Processes {
		if p.Label == label {
			return p, true
		}
	}
	return Process{}, false
}

// MadeByLabel returns what is known of the process that was made under a label.
func (t *Truth) MadeByLabel(label string) (Made, bool) {
	for _, m := range t.Made {
		if m.Label == label {
			return m, true
		}
	}
	return Made{}, false
}

// Symbol returns the symbol of a name, if it was chosen and the name is
// unambiguous.
func (t *Truth) Symbol(name string) (Symbol, bool) {
	for _, s := range t.Symbols {
		if s.Name == name && s.Count == 1 {
			return s, true
		}
	}
	return Symbol{}, false
}
