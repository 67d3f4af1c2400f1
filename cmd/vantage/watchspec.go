package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// watchPlace is an address as the command line names it.
type watchPlace struct {
	kind   placeKind
	addr   uint64 // physical or virtual
	symbol string // of the guest's kernel; escaped where it is printed
	offset uint64 // from it
}

type placeKind uint8

const (
	placePhys placeKind = iota
	placeVirt
	placeSymbol
)

// watchSpec is one trap as the command line asks for it. Its Addr or Virt is
// filled in when the guest has told where the place is.
type watchSpec struct {
	flag, text string // as they were written
	place      watchPlace
	trap       hypervisor.Trap
}

// name is what the trap is called in output.
func (s *watchSpec) name() string { return strings.TrimSpace(s.flag + " " + s.text) }

func (s *watchSpec) fail(err error) error {
	return fmt.Errorf("--%s: %w", s.name(), err)
}

// msrNames are the MSRs that have a name on the command line (SDM 4, table 2-2;
// Linux has the same in asm/msr-index.h as MSR_…).
var msrNames = map[string]uint32{
	"SYSENTER_CS": 0x174, "SYSENTER_ESP": 0x175, "SYSENTER_EIP": 0x176,
	"EFER": 0xc000_0080, "STAR": 0xc000_0081, "LSTAR": 0xc000_0082, "CSTAR": 0xc000_0083, "SFMASK": 0xc000_0084,
	"FS_BASE": 0xc000_0100, "GS_BASE": 0xc000_0101, "KERNEL_GS_BASE": 0xc000_0102, "TSC_AUX": 0xc000_0103,
}

// msrText is the name of an MSR, or its number.
func msrText(index uint32) string {
	for name, i := range msrNames {
		if i == index {
			return name
		}
	}
	return fmt.Sprintf("%#x", index)
}

// sortedMSRs are the names of MSRs in order of the alphabet.
func sortedMSRs() []string {
	names := make([]string, 0, len(msrNames))
	for name := range msrNames {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// parsePage reads ADDR[:SIZE].
func parsePage(text string, access hypervisor.Access, size uint64, mechanism hypervisor.Mechanism) (s watchSpec, err error) {
	s.trap = hypervisor.Trap{Kind: hypervisor.TrapPage, Access: access, Mechanism: mechanism}
	s.place, s.trap.Size, err = parseSizedPlace(text, size)
	return s, err
}

// parseBreak reads ADDR.
func parseBreak(text string) (s watchSpec, err error) {
	s.trap = hypervisor.Trap{Kind: hypervisor.TrapBreakpoint, Access: hypervisor.AccessExecute}
	s.place, s.trap.Size, err = parseSizedPlace(text, 0)
	if err == nil && s.trap.Size != 0 {
		return s, errors.New("a breakpoint is on one instruction and has no :SIZE")
	}
	return s, err
}

// parseHardware reads x|w|rw:VIRT[:SIZE].
func parseHardware(text string) (s watchSpec, err error) {
	const want = "want x, w or rw, a colon and a virtual address, as in w:0xffffffff82000000:8"
	mode, rest, ok := strings.Cut(text, ":")
	s.trap = hypervisor.Trap{Kind: hypervisor.TrapHardware, VCPU: hypervisor.AllVCPUs}
	size := uint64(8)
	switch {
	case ok && mode == "x":
		s.trap.Access, size = hypervisor.AccessExecute, 1
	case ok && mode == "w":
		s.trap.Access = hypervisor.AccessWrite
	case ok && mode == "rw":
		s.trap.Access = hypervisor.AccessRead | hypervisor.AccessWrite
	case ok && mode == "r":
		return s, errors.New("the processor cannot stop on reads alone: use rw, or --read on the page")
	default:
		return s, errors.New(want)
	}
	if s.place, s.trap.Size, err = parseSizedPlace(rest, size); err != nil {
		return s, err
	}
	if s.place.kind == placePhys {
		s.place.kind = placeVirt // a debug register knows no other
	}
	switch {
	case mode == "x" && s.trap.Size != 1:
		return s, errors.New("execution is of one instruction: leave :SIZE out")
	case !slices.Contains([]uint64{1, 2, 4, 8}, s.trap.Size):
		return s, fmt.Errorf("%d bytes: a debug register watches 1, 2, 4 or 8: take several, or --write on the page", s.trap.Size)
	case s.place.kind == placeVirt:
		return s, checkAligned(s.place.addr, s.trap.Size)
	}
	return s, nil // a symbol's address is not known yet
}

func checkAligned(addr, size uint64) error {
	if addr%size == 0 {
		return nil
	}
	return fmt.Errorf("%d bytes at %#x: a debug register needs an address that is a multiple of the size: give a smaller :SIZE", size, addr)
}

// parseMSR reads r|w|rw:INDEX.
func parseMSR(text string) (s watchSpec, err error) {
	s.trap.Kind = hypervisor.TrapMSR
	var rest string
	if s.trap.Access, rest, err = parseMode(text, "a register, as in w:LSTAR or rw:0x174"); err != nil {
		return s, err
	}
	if i, ok := msrNames[strings.ToUpper(rest)]; ok {
		s.trap.MSR = i
		return s, nil
	}
	v, err := parseHex(rest, 32)
	if err != nil {
		return s, fmt.Errorf("%q: want a number in hexadecimal (0x174) or one of %s", rest, strings.Join(sortedMSRs(), ", "))
	}
	s.trap.MSR = uint32(v)
	return s, nil
}

// parsePort reads r|w|rw:PORT[:COUNT].
func parsePort(text string) (s watchSpec, err error) {
	s.trap.Kind, s.trap.Count = hypervisor.TrapPort, 1
	var rest string
	if s.trap.Access, rest, err = parseMode(text, "a port, as in rw:0x3f8:8"); err != nil {
		return s, err
	}
	port, count, counted := strings.Cut(rest, ":")
	v, err := parseHex(port, 16)
	if err != nil {
		return s, fmt.Errorf("%q: want a port from 0x0 to 0xffff", port)
	}
	s.trap.Port = uint16(v)
	if counted {
		n, err := parseCount(count)
		if err != nil || n == 0 || v+n > 1<<16 || n > 1<<16 {
			return s, fmt.Errorf("%q: want a number of ports from 1 to %d", count, 1<<16-v)
		}
		s.trap.Count = uint32(n)
	}
	return s, nil
}

// parseMode reads r, w or rw and what is behind the colon.
func parseMode(text, what string) (access hypervisor.Access, rest string, err error) {
	mode, rest, ok := strings.Cut(text, ":")
	switch {
	case ok && mode == "r":
		return hypervisor.AccessRead, rest, nil
	case ok && mode == "w":
		return hypervisor.AccessWrite, rest, nil
	case ok && mode == "rw":
		return hypervisor.AccessRead | hypervisor.AccessWrite, rest, nil
	}
	return 0, "", fmt.Errorf("want r, w or rw, a colon and %s", what)
}

// parseSizedPlace reads 0x…, virt:0x… or sym:NAME[+OFF], and :SIZE behind it.
func parseSizedPlace(text string, size uint64) (p watchPlace, _ uint64, err error) {
	rest := text
	switch {
	case strings.HasPrefix(text, "virt:"):
		p.kind, rest = placeVirt, text[len("virt:"):]
	case strings.HasPrefix(text, "sym:"):
		p.kind, rest = placeSymbol, text[len("sym:"):]
	}
	where, sizeText, sized := strings.Cut(rest, ":")
	if p.kind == placeSymbol {
		name, offset, far := strings.Cut(where, "+")
		if p.symbol = name; name == "" {
			return p, 0, errors.New("want a symbol of the guest's kernel, as in sym:jiffies_64 or sym:do_exit+0x4")
		}
		if far {
			if p.offset, err = parseCount(offset); err != nil {
				return p, 0, fmt.Errorf("%q: want a number of bytes behind the symbol, as in sym:do_exit+0x4", offset)
			}
		}
	} else if p.addr, err = parseHex(where, 64); err != nil {
		return p, 0, fmt.Errorf("%q: want an address: 0x… (guest-physical), virt:0x… (of the kernel) or sym:NAME[+OFF]", where)
	}
	if sized {
		if size, err = parseCount(sizeText); err != nil || size == 0 {
			return p, 0, fmt.Errorf("%q: want a size in bytes, from 1 on", sizeText)
		}
	}
	if size > 0 && size-1 > math.MaxUint64-p.addr {
		return p, 0, fmt.Errorf("%d bytes at %#x are more than there are addresses", size, p.addr)
	}
	return p, size, nil
}

// parseHex reads a number that says by 0x that it is hexadecimal: 174 may be
// meant either way, and a trap on the wrong address tells nothing.
func parseHex(s string, bits int) (uint64, error) {
	digits, ok := strings.CutPrefix(strings.ToLower(s), "0x")
	if !ok {
		return 0, fmt.Errorf("%q: want a number in hexadecimal, as in 0x1000", s)
	}
	return strconv.ParseUint(digits, 16, bits)
}

// parseCount reads a number, decimal or with 0x.
func parseCount(s string) (uint64, error) {
	if v, err := parseHex(s, 64); err == nil {
		return v, nil
	}
	return strconv.ParseUint(s, 10, 64)
}
