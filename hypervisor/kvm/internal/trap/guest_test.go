package trap

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/bus"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/guestmem"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// A tiny guest: 64-bit code in ring 0 with all memory mapped to itself, the first
// 2 MiB in pages of 4 KiB.
const (
	ramSize  = 16 << 20
	tablesAt = 0x2000
	idtAt    = 0x8000
	gdtAt    = 0x9000
	tssAt    = 0xa000
	codeAt   = 0x10000
	handlers = 0x18000 // of exceptions, if a test puts any there
	dataAt   = 0x40000 // RBX
	moreAt   = 0x50000 // RBP
	stackAt  = 0x70000 // top of vCPU 0's; the others' are a page further each

	portOut = 0x99 // what the guest tells the test
	portEnd = 0x98 // a vCPU is done
)

// guest is a machine with an engine.
type guest struct {
	t    *testing.T
	vm   *core.VM
	mem  *guestmem.Memory
	e    *Engine
	said chan uint64   // OUTs to portOut
	done chan struct{} // a value for each OUT to portEnd
	end  chan core.Reason

	mu       sync.Mutex
	stopped  bool
	expected bool // of end: the test looks for it
}

type said struct{ c chan uint64 }

func (s said) Read(_ uint64, p []byte) {
	for i := range p {
		p[i] = 0x5a
	}
}
func (s said) Write(_ uint64, p []byte) {
	var b [8]byte
	copy(b[:], p)
	select {
	case s.c <- binary.LittleEndian.Uint64(b[:]):
	default:
	}
}

type ended struct{ c chan struct{} }

func (s ended) Read(uint64, []byte)  {}
func (s ended) Write(uint64, []byte) { s.c <- struct{}{} }

// option changes how a guest is made.
type option func(*core.Config)

// newGuest makes a guest whose vCPUs will begin at codeAt, with RDI their number.
// code is hex, with spaces; comments begin with a semicolon and end with the line.
func newGuest(t *testing.T, vcpus int, code string, opts ...option) *guest {
	t.Helper()
	labtest.NeedKVM(t)
	sys, err := kvmapi.Open("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sys.Close() })
	mem, err := guestmem.New([]hypervisor.Range{{Start: 0, Size: ramSize}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{t: t, mem: mem, said: make(chan uint64, 1024), done: make(chan struct{}, 64), end: make(chan core.Reason, 1)}
	dev, err := os.OpenFile("/dev/userfaultfd", os.O_RDWR, 0)
	if err == nil {
		defer dev.Close()
	}
	g.e = New(Config{Memory: mem, Userfault: dev, NestedPaging: labtest.InsideNested()})
	var ports bus.Bus
	for port, h := range map[uint64]bus.Handler{portOut: said{g.said}, portEnd: ended{g.done}} {
		size := uint64(1)
		if port == portOut {
			size = 4 // OUT of EAX
		}
		if err := ports.Add(port, size, h); err != nil {
			t.Fatal(err)
		}
	}
	cfg := core.Config{
		System: sys, Memory: mem, VCPUs: vcpus, Hooks: g.e, NoIRQChip: true, Ports: &ports,
		Shutdown: func(r core.Reason) { g.end <- r },
	}
	for _, o := range opts {
		o(&cfg)
	}
	if g.vm, err = core.New(cfg); err != nil {
		t.Fatal(err)
	}
	if err := g.e.Attach(g.vm, sys); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.close)
	g.tables()
	g.write(codeAt, assemble(t, code))
	for i, v := range g.vm.VCPUs() {
		cpuid, err := sys.SupportedCPUID()
		if err == nil {
			err = v.KVM().SetCPUID2(cpuid)
		}
		if err != nil {
			t.Fatal(err)
		}
		if cfg.NoIRQChip == false {
			if err := v.KVM().SetMPState(kvmapi.MPStateRunnable); err != nil {
				t.Fatal(err)
			}
		}
		r := longMode()
		r.RDI, r.RBX, r.RBP, r.RSP = uint64(i), dataAt, moreAt, stackAt+uint64(i)*hypervisor.PageSize
		if err := v.SetRegisters(&r); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// assemble turns hex into bytes.
func assemble(t *testing.T, code string) []byte {
	t.Helper()
	var out []byte
	for line := range strings.Lines(code) {
		line, _, _ = strings.Cut(line, ";")
		b, err := hex.DecodeString(strings.Join(strings.Fields(line), ""))
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		out = append(out, b...)
	}
	return out
}

func longMode() hypervisor.Registers {
	code := hypervisor.Segment{Selector: 8, Limit: 0xffffffff, Attributes: 0xa09b}
	data := hypervisor.Segment{Selector: 16, Limit: 0xffffffff, Attributes: 0xc093}
	return hypervisor.Registers{
		Valid: hypervisor.GroupGeneral | hypervisor.GroupSegments | hypervisor.GroupControl,
		// With interrupts on, though there are none: see lab.EPT.
		RIP: codeAt, RFLAGS: 0x202,
		CS: code, DS: data, ES: data, FS: data, GS: data, SS: data,
		TR:  hypervisor.Segment{Selector: 24, Base: tssAt, Limit: 0x67, Attributes: 0x8b},
		LDT: hypervisor.Segment{Attributes: 0x82},
		GDT: hypervisor.Table{Base: gdtAt, Limit: 0x3f}, IDT: hypervisor.Table{Base: idtAt, Limit: 0xfff},
		CR0: 0x8005_0033, CR3: tablesAt, CR4: 0x620, EFER: 0x501,
	}
}

// tables writes page tables, and segments for what loads CS.
func (g *guest) tables() {
	word := func(at, v uint64) {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], v)
		g.write(at, b[:])
	}
	const flags = 0x63 // present, writable, accessed, dirty
	word(tablesAt, tablesAt+0x1000|flags)
	word(tablesAt+0x1000, tablesAt+0x2000|flags)
	word(tablesAt+0x2000, tablesAt+0x3000|flags)
	for i := uint64(1); i < 8; i++ {
		word(tablesAt+0x2000+8*i, i<<21|flags|0x80)
	}
	for i := range uint64(512) {
		word(tablesAt+0x3000+8*i, i<<12|flags)
	}
	word(gdtAt+8, 0x00af9b00_0000ffff)
	word(gdtAt+16, 0x00cf9300_0000ffff)
}

func (g *guest) write(at uint64, b []byte) {
	g.t.Helper()
	if n, err := g.mem.WritePhys(b, hypervisor.PhysAddr(at)); err != nil || n != len(b) {
		g.t.Fatal(err)
	}
}

func (g *guest) read(at uint64, n int) []byte {
	g.t.Helper()
	b := make([]byte, n)
	if _, err := g.mem.ReadPhys(b, hypervisor.PhysAddr(at)); err != nil {
		g.t.Fatal(err)
	}
	return b
}

func (g *guest) word(at uint64) uint64 { return binary.LittleEndian.Uint64(g.read(at, 8)) }

func (g *guest) start() { g.vm.Start() }

// wait waits until n vCPUs have said that they are done.
func (g *guest) wait(n int) {
	g.t.Helper()
	for range n {
		select {
		case <-g.done:
		case r := <-g.end:
			g.t.Fatalf("the guest ended: %+v", r)
		case <-time.After(patienceOfTests):
			g.stuck()
		}
	}
}

// patienceOfTests is more than anything takes under the emulations.
const patienceOfTests = 20 * time.Second

func (g *guest) stuck() {
	g.t.Helper()
	for _, v := range g.vm.VCPUs() {
		v.Kick()
	}
	var where []hypervisor.Registers
	stopped := make(chan struct{})
	go func() {
		g.vm.Stop()
		for _, v := range g.vm.VCPUs() {
			r, _ := v.Registers()
			where = append(where, r)
		}
		close(stopped)
	}()
	select {
	case <-stopped:
		for _, r := range where {
			g.t.Errorf("vCPU %d at %v", r.VCPU, r.RIP)
		}
	case <-time.After(5 * time.Second):
		g.t.Error("the vCPUs do not stand")
	}
	debug.SetTraceback("all")
	panic("stuck: see the goroutines")
}

// run starts the guest and waits for n vCPUs.
func (g *guest) run(n int) {
	g.t.Helper()
	g.start()
	g.wait(n)
}

func (g *guest) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopped {
		return
	}
	g.stopped = true
	g.vm.Halt()
	if err := g.e.Close(); err != nil {
		g.t.Error(err)
	}
	if err := g.vm.Close(); err != nil {
		g.t.Error(err)
	}
	if err := g.mem.Close(); err != nil {
		g.t.Error(err)
	}
	if !g.expected {
		select {
		case r := <-g.end:
			g.t.Errorf("the guest ended: %+v", r)
		default:
		}
	}
}

// set sets a trap, and skips the test where the host cannot.
func (g *guest) set(t hypervisor.Trap, h hypervisor.TrapHandler) hypervisor.TrapID {
	g.t.Helper()
	id, err := g.e.SetTrap(context.Background(), t, h)
	if err != nil {
		g.t.Fatal(err)
	}
	return id
}

// events collects events and answers each with what answer says.
type events struct {
	mu     sync.Mutex
	list   []hypervisor.TrapEvent
	answer func(ev *hypervisor.TrapEvent) hypervisor.TrapAnswer
}

func (l *events) handle(ev *hypervisor.TrapEvent) hypervisor.TrapAnswer {
	l.mu.Lock()
	l.list = append(l.list, *ev)
	l.mu.Unlock()
	if l.answer != nil {
		return l.answer(ev)
	}
	return hypervisor.TrapAnswer{}
}

func (l *events) all() []hypervisor.TrapEvent {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]hypervisor.TrapEvent(nil), l.list...)
}

func verb(v hypervisor.TrapVerb, value ...byte) func(*hypervisor.TrapEvent) hypervisor.TrapAnswer {
	return func(*hypervisor.TrapEvent) hypervisor.TrapAnswer {
		return hypervisor.TrapAnswer{Verb: v, Value: value}
	}
}

// show is an event in a line.
func show(ev hypervisor.TrapEvent) string {
	return fmt.Sprintf("%s %v at %v/%v size %d old %x new %x known %b vcpu %d rip %v %s landed %v lost %v seq %d dropped %d",
		ev.Kind, ev.Access, ev.Addr, ev.Virt, ev.Size, ev.Old, ev.New, ev.Known, ev.VCPU, ev.Registers.RIP, ev.Mechanism, ev.Landed, ev.Lost, ev.Sequence, ev.Dropped)
}
