package monitor

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// maxCPUs bounds the vCPUs that are believed; QEMU's x86 machines allow 4096.
const maxCPUs = 1 << 13

// ErrNoRegisters is returned when the text holds no vCPU's registers.
var ErrNoRegisters = errors.New("info registers: no vCPU")

// ParseRegisters reads the text of `info registers -a`. A vCPU that runs 32-bit
// code is printed with 32-bit general registers: R8 to R15 are then zero. The
// monitor prints no system-call MSRs, so GroupMSR is never valid.
func ParseRegisters(text string) ([]hypervisor.Registers, error) {
	var out []hypervisor.Registers
	var cur *cpu
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if s, ok := strings.CutPrefix(line, "CPU#"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(s))
			if err != nil || n < 0 || n >= maxCPUs {
				return nil, fmt.Errorf("info registers: vCPU %.16q", s)
			}
			if len(out) >= maxCPUs {
				return nil, fmt.Errorf("info registers: more than %d vCPUs", maxCPUs)
			}
			if cur != nil {
				out = append(out, cur.done())
			}
			cur = &cpu{}
			cur.r.VCPU = n
			continue
		}
		if cur != nil && len(line) <= maxLine {
			cur.line(line)
		}
	}
	if cur == nil {
		return nil, ErrNoRegisters
	}
	return append(out, cur.done()), nil
}

// cpu gathers one vCPU's registers.
type cpu struct {
	r    hypervisor.Registers
	seen map[string]bool
}

// done says which groups are there in whole.
func (c *cpu) done() hypervisor.Registers {
	has := func(keys string) bool {
		for k := range strings.FieldsSeq(keys) {
			if !c.seen[k] {
				return false
			}
		}
		return true
	}
	if has("AX BX CX DX SI DI BP SP IP FL") {
		c.r.Valid |= hypervisor.GroupGeneral
	}
	if has("ES CS SS DS FS GS LDT TR GDT IDT") {
		c.r.Valid |= hypervisor.GroupSegments
	}
	if has("CR0 CR2 CR3 CR4 EFER") {
		c.r.Valid |= hypervisor.GroupControl
	}
	return c.r
}

// line reads "KEY=VALUE KEY=VALUE …" or "KEY=SELECTOR BASE LIMIT FLAGS …"; the
// key may be padded: "R8 =…".
func (c *cpu) line(s string) {
	key, rest, ok := strings.Cut(s, "=")
	if !ok {
		return
	}
	key = strings.TrimSpace(key)
	if c.seen == nil {
		c.seen = map[string]bool{}
	}
	if c.segment(key, strings.Fields(rest)) {
		return
	}
	for s != "" {
		key, rest, ok := strings.Cut(s, "=")
		if !ok {
			return
		}
		rest = strings.TrimLeft(rest, " ")
		val, next, _ := strings.Cut(rest, " ")
		if v, err := strconv.ParseUint(val, 16, 64); err == nil {
			c.set(lastWord(key), v)
		}
		s = next
	}
}

// lastWord is the key in "[---Z-P-] CPL": flags without a key come between.
func lastWord(s string) string {
	s = strings.TrimSpace(s)
	if i := strings.LastIndexByte(s, ' '); i >= 0 {
		return s[i+1:]
	}
	return s
}

func (c *cpu) segment(key string, f []string) bool {
	r := &c.r
	seg := map[string]*hypervisor.Segment{
		"ES": &r.ES, "CS": &r.CS, "SS": &r.SS, "DS": &r.DS, "FS": &r.FS, "GS": &r.GS, "LDT": &r.LDT, "TR": &r.TR,
	}[key]
	table := map[string]*hypervisor.Table{"GDT": &r.GDT, "IDT": &r.IDT}[key]
	hex := func(i, bits int) uint64 {
		v, err := strconv.ParseUint(f[i], 16, bits)
		if err != nil {
			f = nil
		}
		return v
	}
	switch {
	case seg != nil && len(f) >= 4:
		var s hypervisor.Segment
		for i, bits := range []int{16, 64, 32, 32} {
			v := hex(i, bits)
			if f == nil {
				return true
			}
			switch i {
			case 0:
				s.Selector = uint16(v)
			case 1:
				s.Base = v
			case 2:
				s.Limit = uint32(v)
			case 3:
				// The descriptor's second word: bits 8-23 are 40-55 of the whole;
				// its bits 16-19 are the limit's, not attributes.
				s.Attributes = uint16(v>>8) & 0xf0ff
			}
		}
		*seg = s
	case table != nil && len(f) >= 2:
		base := hex(0, 64)
		if f == nil {
			return true
		}
		limit := hex(1, 32)
		if f == nil {
			return true
		}
		*table = hypervisor.Table{Base: hypervisor.VirtAddr(base), Limit: uint16(limit)}
	default:
		return seg != nil || table != nil
	}
	c.seen[key] = true
	return true
}

func (c *cpu) set(key string, v uint64) {
	r := &c.r
	dst := map[string]*uint64{
		"R8": &r.R8, "R9": &r.R9, "R10": &r.R10, "R11": &r.R11, "R12": &r.R12, "R13": &r.R13, "R14": &r.R14, "R15": &r.R15,
		"CR0": &r.CR0, "CR2": &r.CR2, "CR3": &r.CR3, "CR4": &r.CR4, "EFER": &r.EFER,
	}[key]
	if dst != nil {
		*dst = v
		c.seen[key] = true
		return
	}
	if len(key) != 3 || key[0] != 'R' && key[0] != 'E' {
		return
	}
	dst = map[string]*uint64{
		"AX": &r.RAX, "BX": &r.RBX, "CX": &r.RCX, "DX": &r.RDX, "SI": &r.RSI, "DI": &r.RDI, "BP": &r.RBP, "SP": &r.RSP,
		"FL": &r.RFLAGS,
	}[key[1:]]
	switch {
	case dst != nil:
		*dst = v
	case key[1:] == "IP":
		r.RIP = hypervisor.VirtAddr(v)
	default:
		return
	}
	c.seen[key[1:]] = true
}
