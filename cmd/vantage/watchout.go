package main

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/vantage-vmi/vantage/event"
	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/term"
)

// maxBytesText is how many bytes of an access a line of text shows; JSON has all.
const maxBytesText = 32

// watchHeader stands over the lines of watchText.
const watchHeader = "      TIME CPU WHAT   WHERE      RIP                 BYTES\n"

// watched is an event on its way from its handler to the printer.
type watched struct {
	at   time.Time
	spec *watchSpec
	ev   *hypervisor.TrapEvent
}

// print writes events until there are no more, or enough.
func (w *watcher) print(a *app) error {
	out := bufio.NewWriterSize(a.stdout, 64<<10)
	if !a.json {
		fmt.Fprint(out, watchHeader)
	}
	for {
		if len(w.events) == 0 { // whoever reads along waits for no more than there is
			if err := out.Flush(); err != nil {
				return err
			}
		}
		e, ok := <-w.events
		if !ok {
			return out.Flush()
		}
		line := []byte(w.text(&e))
		if a.json {
			var err error
			if line, err = event.MarshalLine(w.line(&e)); err != nil {
				return err
			}
		}
		if _, err := out.Write(append(line, '\n')); err != nil {
			return err
		}
		if w.printed++; w.printed == w.limit {
			return out.Flush()
		}
	}
}

// text is an event as a line for people.
func (w *watcher) text(e *watched) string {
	ev := e.ev
	rip := "-"
	if ev.Registers.Valid.Has(hypervisor.GroupGeneral) {
		rip = " " + ev.Registers.RIP.String()
		if !ev.Known.Has(hypervisor.KnownRIP) {
			rip = "~" + rip[1:]
		}
	}
	notes := []string{bytesOf(ev)}
	if name := w.symbolAt(ev); name != "" {
		notes = append(notes, name)
	}
	if ev.Lost {
		notes = append(notes, "LOST: the guest has replaced the instruction, the breakpoint is gone")
	}
	if ev.Dropped > 0 {
		notes = append(notes, fmt.Sprintf("(%d before it were above --rate)", ev.Dropped))
	}
	line := fmt.Sprintf("%10.6f %3d %-6s %-10s %-19s %s",
		e.at.Sub(w.start).Seconds(), ev.VCPU, whatOf(e), whereOf(ev), rip, strings.TrimSpace(strings.Join(notes, " ")))
	return term.Escape(strings.TrimRight(line, " "))
}

// whatOf is the kind of an event in a word.
func whatOf(e *watched) string {
	write := e.ev.Access.Has(hypervisor.AccessWrite)
	switch e.ev.Kind {
	case hypervisor.TrapPage:
		return accessText(e.ev.Access)
	case hypervisor.TrapBreakpoint:
		return "break"
	case hypervisor.TrapHardware:
		mode, _, _ := strings.Cut(e.spec.text, ":") // of rw the processor does not say which
		return "hw-" + mode
	case hypervisor.TrapMSR:
		if write {
			return "wrmsr"
		}
		return "rdmsr"
	case hypervisor.TrapPort:
		if write {
			return "out"
		}
		return "in"
	}
	return string(e.ev.Kind)
}

func accessText(a hypervisor.Access) string {
	switch a {
	case hypervisor.AccessRead:
		return "read"
	case hypervisor.AccessWrite:
		return "write"
	case hypervisor.AccessExecute:
		return "exec"
	}
	return a.String()
}

// whereOf is what the guest accesses, or where it is.
func whereOf(ev *hypervisor.TrapEvent) string {
	switch {
	case ev.Kind == hypervisor.TrapMSR:
		return msrText(ev.MSR)
	case ev.Kind == hypervisor.TrapPort:
		return fmt.Sprintf("%#x", ev.Port)
	case ev.Kind == hypervisor.TrapHardware && ev.Known.Has(hypervisor.KnownVirt):
		return ev.Virt.String()
	case ev.Known.Has(hypervisor.KnownAddr):
		return ev.Addr.String()
	case ev.Known.Has(hypervisor.KnownVirt):
		return ev.Virt.String()
	}
	return "-"
}

// bytesOf is what was there and what comes: memory as its bytes lie, registers and
// ports as numbers.
func bytesOf(ev *hypervisor.TrapEvent) string {
	text := func(b []byte) string {
		if ev.Kind == hypervisor.TrapMSR || ev.Kind == hypervisor.TrapPort {
			return littleEndian(b).String()
		}
		if len(b) > maxBytesText {
			return hex.EncodeToString(b[:maxBytesText]) + "…"
		}
		return hex.EncodeToString(b)
	}
	known := func(f hypervisor.TrapFields, b []byte) bool { return ev.Known.Has(f) && len(b) > 0 }
	was, is := known(hypervisor.KnownOld, ev.Old), known(hypervisor.KnownNew, ev.New)
	switch {
	case was && is:
		return text(ev.Old) + " -> " + text(ev.New)
	case is:
		return "-> " + text(ev.New)
	case was:
		return text(ev.Old)
	}
	return ""
}

// littleEndian reads up to 8 bytes as a number.
func littleEndian(b []byte) (v hypervisor.VirtAddr) {
	for i, c := range b[:min(len(b), 8)] {
		v |= hypervisor.VirtAddr(c) << (8 * i)
	}
	return v
}

// symbolAt is where in the kernel an event comes from, where the kernel was looked
// for anyway.
func (w *watcher) symbolAt(ev *hypervisor.TrapEvent) string {
	if w.symbol == nil || !ev.Registers.Valid.Has(hypervisor.GroupGeneral) {
		return ""
	}
	name, offset, ok := w.symbol(ev.Registers.RIP)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%s+%#x", name, offset)
}

// watchLine is an event in JSON. Addresses and what is as wide as a register are
// hexadecimal text, as JSON's numbers would lose their low bits.
type watchLine struct {
	Time      event.Time           `json:"time"`
	VM        string               `json:"vm"`
	Trap      string               `json:"trap"` // the flag that asked for it
	Kind      hypervisor.TrapKind  `json:"kind"`
	Access    string               `json:"access"`
	VCPU      int                  `json:"vcpu"`
	Sequence  uint64               `json:"sequence"`
	Mechanism hypervisor.Mechanism `json:"mechanism,omitempty"`
	Phys      *hypervisor.PhysAddr `json:"phys_addr,omitempty"`
	Virt      *hypervisor.VirtAddr `json:"virt_addr,omitempty"`
	Size      int                  `json:"size,omitempty"`
	Old       string               `json:"old,omitempty"`
	New       string               `json:"new,omitempty"`
	MSR       *hypervisor.VirtAddr `json:"msr,omitempty"`
	MSRName   string               `json:"msr_name,omitempty"`
	Port      *hypervisor.VirtAddr `json:"port,omitempty"`
	Value     *hypervisor.VirtAddr `json:"value,omitempty"`
	RIP       *hypervisor.VirtAddr `json:"rip,omitempty"`
	RIPExact  bool                 `json:"rip_exact"` // else it is behind the instruction
	RIPSymbol string               `json:"rip_symbol,omitempty"`
	Answer    hypervisor.TrapVerb  `json:"answer"`
	Landed    bool                 `json:"landed"`
	Lost      bool                 `json:"lost"`
	Dropped   uint64               `json:"dropped"`
	Registers *watchRegisters      `json:"registers,omitempty"`
}

type watchRegisters struct {
	RAX    hypervisor.VirtAddr  `json:"rax"`
	RBX    hypervisor.VirtAddr  `json:"rbx"`
	RCX    hypervisor.VirtAddr  `json:"rcx"`
	RDX    hypervisor.VirtAddr  `json:"rdx"`
	RSI    hypervisor.VirtAddr  `json:"rsi"`
	RDI    hypervisor.VirtAddr  `json:"rdi"`
	RBP    hypervisor.VirtAddr  `json:"rbp"`
	RSP    hypervisor.VirtAddr  `json:"rsp"`
	R8     hypervisor.VirtAddr  `json:"r8"`
	R9     hypervisor.VirtAddr  `json:"r9"`
	R10    hypervisor.VirtAddr  `json:"r10"`
	R11    hypervisor.VirtAddr  `json:"r11"`
	R12    hypervisor.VirtAddr  `json:"r12"`
	R13    hypervisor.VirtAddr  `json:"r13"`
	R14    hypervisor.VirtAddr  `json:"r14"`
	R15    hypervisor.VirtAddr  `json:"r15"`
	RFLAGS hypervisor.VirtAddr  `json:"rflags"`
	CR3    *hypervisor.VirtAddr `json:"cr3,omitempty"`
}

// line is an event as JSON prints it.
func (w *watcher) line(e *watched) *watchLine {
	ev := e.ev
	number := func(v uint64) *hypervisor.VirtAddr { n := hypervisor.VirtAddr(v); return &n }
	l := &watchLine{
		Time: event.At(e.at), VM: w.vm, Trap: e.spec.name(), Kind: ev.Kind, Access: accessText(ev.Access), VCPU: ev.VCPU,
		Sequence: ev.Sequence, Mechanism: ev.Mechanism, Size: ev.Size, RIPSymbol: w.symbolAt(ev),
		Answer: w.answer, Landed: ev.Landed, Lost: ev.Lost, Dropped: ev.Dropped,
	}
	if ev.Kind == hypervisor.TrapHardware && e.spec.trap.Access.Has(hypervisor.AccessRead) {
		l.Access = "read or write" // the processor does not say which
	}
	if ev.Known.Has(hypervisor.KnownAddr) {
		l.Phys = &ev.Addr
	}
	if ev.Known.Has(hypervisor.KnownVirt) {
		l.Virt = &ev.Virt
	}
	if ev.Known.Has(hypervisor.KnownOld) {
		l.Old = hex.EncodeToString(ev.Old)
	}
	if ev.Known.Has(hypervisor.KnownNew) {
		l.New = hex.EncodeToString(ev.New)
	}
	switch ev.Kind {
	case hypervisor.TrapMSR:
		l.MSR = number(uint64(ev.MSR))
		if name := msrText(ev.MSR); msrNames[name] != 0 {
			l.MSRName = name
		}
	case hypervisor.TrapPort:
		l.Port = number(uint64(ev.Port))
	}
	if (l.MSR != nil || l.Port != nil) && ev.Access.Has(hypervisor.AccessWrite) {
		l.Value = number(ev.Value)
	}
	if r := &ev.Registers; r.Valid.Has(hypervisor.GroupGeneral) {
		l.RIP, l.RIPExact = &r.RIP, ev.Known.Has(hypervisor.KnownRIP)
		v := func(n uint64) hypervisor.VirtAddr { return hypervisor.VirtAddr(n) }
		l.Registers = &watchRegisters{
			v(r.RAX), v(r.RBX), v(r.RCX), v(r.RDX), v(r.RSI), v(r.RDI), v(r.RBP), v(r.RSP),
			v(r.R8), v(r.R9), v(r.R10), v(r.R11), v(r.R12), v(r.R13), v(r.R14), v(r.R15), v(r.RFLAGS), nil,
		}
		if r.Valid.Has(hypervisor.GroupControl) {
			l.Registers.CR3 = number(r.CR3)
		}
	}
	return l
}
