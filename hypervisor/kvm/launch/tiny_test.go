package launch

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/hypervisortest"
	"github.com/vantage-vmi/vantage/hypervisor/kvm"
)

// A tiny guest that does one thing: it stores 8 bytes where the mailbox says, over
// and over when no one says anything new.
const (
	tinyBase    = 0x10_0000
	tinyMailbox = tinyBase + 0x4000 // go, gpa, value, how many were done
	tinyLoop    = tinyBase + 0x45
	tinyMemory  = 64 << 20
)

// tinyCode is entered by PVH: 32 bits, no paging.
const tinyCode = `
	b8 00 10 10 00          ; mov eax, PML4
	0f 22 d8                ; mov cr3, eax
	0f 20 e0                ; mov eax, cr4
	83 c8 20                ; or eax, PAE
	0f 22 e0                ; mov cr4, eax
	b9 80 00 00 c0          ; mov ecx, EFER
	0f 32                   ; rdmsr
	0d 00 01 00 00          ; or eax, LME
	0f 30                   ; wrmsr
	0f 20 c0                ; mov eax, cr0
	0d 00 00 00 80          ; or eax, PG
	0f 22 c0                ; mov cr0, eax
	0f 01 15 f0 00 10 00    ; lgdt [tinyBase+0xf0]
	0f 01 1d e0 00 10 00    ; lidt [tinyBase+0xe0]
	ea 3f 00 10 00 08 00    ; jmp 8:1f
	fb                      ; 1: sti, for lab.EPT
	be 00 40 10 00          ; mov esi, mailbox
	f3 90                   ; 2: pause
	48 8b 06                ; mov rax, [rsi]
	48 85 c0                ; test rax, rax
	74 f6                   ; jz 2b
	48 8b 5e 08             ; mov rbx, [rsi+8]
	48 8b 4e 10             ; mov rcx, [rsi+16]
	48 89 0b                ; mov [rbx], rcx
	48 c7 06 00 00 00 00    ; mov qword [rsi], 0
	48 ff 46 18             ; inc qword [rsi+24]
	eb de                   ; jmp 2b
`

func hexBytes(t *testing.T, code string) []byte {
	t.Helper()
	var out []byte
	for line := range strings.Lines(code) {
		line, _, _ = strings.Cut(line, ";")
		b, err := hex.DecodeString(strings.Join(strings.Fields(line), ""))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	return out
}

// tinyKernel leaves the guest as an ELF file with a PVH entry (Xen's public
// arch-x86/hvm/start_info.h, elfnote.h).
func tinyKernel(t *testing.T) string {
	t.Helper()
	le := binary.LittleEndian
	image := make([]byte, 0x5000)
	copy(image, hexBytes(t, tinyCode))
	le.PutUint16(image[0xe0:], 15) // an IDT with nothing in it
	le.PutUint32(image[0xe2:], tinyBase+0x800)
	le.PutUint16(image[0xf0:], 15)
	le.PutUint32(image[0xf2:], tinyBase+0x100)
	le.PutUint64(image[0x108:], 0x00af9b00_0000ffff)
	const table = 0x63 // present, writable, accessed, dirty
	le.PutUint64(image[0x1000:], (tinyBase+0x2000)|table)
	le.PutUint64(image[0x2000:], (tinyBase+0x3000)|table)
	for i := range uint64(512) {
		le.PutUint64(image[0x3000+8*i:], i<<21|table|0x80)
	}
	var note bytes.Buffer
	for _, v := range []any{uint32(4), uint32(4), uint32(18), []byte("Xen\x00"), uint32(tinyBase)} {
		_ = binary.Write(&note, le, v)
	}
	const header, program = 64, 56
	noteAt := header + 2*program
	var f bytes.Buffer
	f.WriteString("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9))
	for _, v := range []any{
		uint16(2), uint16(62), uint32(1), uint64(tinyBase), uint64(header), uint64(0), uint32(0),
		uint16(header), uint16(program), uint16(2), uint16(0), uint16(0), uint16(0),
		// PT_LOAD and PT_NOTE: type, flags, offset, vaddr, paddr, filesz, memsz, align
		uint32(1), uint32(7), uint64(0x1000), uint64(tinyBase), uint64(tinyBase), uint64(len(image)), uint64(len(image)), uint64(0x1000),
		uint32(4), uint32(4), uint64(noteAt), uint64(0), uint64(0), uint64(note.Len()), uint64(note.Len()), uint64(4),
	} {
		_ = binary.Write(&f, le, v)
	}
	f.Write(note.Bytes())
	f.Write(make([]byte, 0x1000-f.Len()))
	f.Write(image)
	path := filepath.Join(t.TempDir(), "tiny")
	if err := os.WriteFile(path, f.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// detached starts a machine by the program, and returns its process; it is killed
// at the end of the test when it is still there.
func detached(t *testing.T, name string, args ...string) (pid int) {
	t.Helper()
	out, errs, status := vantage(t, append([]string{"run", "--name", name, "--detach", "--json"}, args...)...)
	if status != 0 {
		t.Fatalf("run: status %d: %s", status, errs)
	}
	pid = int(lines(t, out)[0]["pid"].(float64))
	t.Cleanup(func() {
		if _, errs, status := vantage(t, "stop", name, "--force"); status != 0 {
			t.Errorf("stop: status %d: %s", status, errs)
			_ = exec.Command("kill", "-9", strconv.Itoa(pid)).Run()
		}
	})
	return pid
}

// tiny is a machine that runs the tiny guest, with a handle of our own.
type tiny struct {
	t    *testing.T
	pid  int
	name string
	d    *kvm.Driver
	vm   *kvm.VM
}

func newTiny(t *testing.T, name string) *tiny {
	t.Helper()
	g := &tiny{t: t, name: name, d: kvm.New(kvm.Options{Timeout: time.Minute})}
	g.pid = detached(t, name, "--kernel", tinyKernel(t), "--memory", fmt.Sprint(tinyMemory))
	g.vm = g.open(t).(*kvm.VM)
	t.Cleanup(func() { _ = g.vm.Close() })
	for end := time.Now().Add(30 * time.Second); ; {
		r, err := g.vm.Registers(t.Context())
		if err == nil && r[0].RIP >= tinyLoop && r[0].RIP < tinyLoop+0x40 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the tiny guest does not run: %+v, %v", r, err)
		}
	}
	return g
}

func (g *tiny) open(t testing.TB) hypervisor.VM {
	t.Helper()
	vm, err := g.d.Open(t.Context(), g.name)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

func (g *tiny) mailbox(at int) (uint64, error) {
	var b [8]byte
	err := hypervisor.ReadFull(g.vm, b[:], tinyMailbox+hypervisor.PhysAddr(8*at))
	return binary.LittleEndian.Uint64(b[:]), err
}

// write lets the guest store p, which has 8 bytes, at gpa.
func (g *tiny) write(p []byte, gpa hypervisor.PhysAddr) error {
	done, err := g.mailbox(3)
	if err != nil {
		return err
	}
	var b [24]byte
	binary.LittleEndian.PutUint64(b[8:], uint64(gpa))
	copy(b[16:], p)
	if _, err := g.vm.WritePhys(b[8:], tinyMailbox+8); err != nil {
		return err
	}
	if _, err := g.vm.WritePhys([]byte{1}, tinyMailbox); err != nil {
		return err
	}
	for end := time.Now().Add(time.Minute); ; {
		now, err := g.mailbox(3)
		if err != nil || now != done {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("the guest does not store at %v", gpa)
		}
	}
}

// truth reads the guest's memory where its process has it, by the host's kernel.
func (g *tiny) truth(p []byte, gpa hypervisor.PhysAddr) error {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", g.pid))
	if err != nil {
		return err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", g.pid))
	if err != nil {
		return err
	}
	defer mem.Close()
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		if n, _ := fmt.Sscanf(line, "%x-%x", &from, &to); n == 2 && to-from == tinyMemory && strings.Contains(line, "s ") {
			_, err := mem.ReadAt(p, int64(from)+int64(gpa))
			return err
		}
	}
	return fmt.Errorf("no mapping of %d bytes in\n%s", uint64(tinyMemory), maps)
}

// The driver of a real machine, in its sandbox, does what package hypervisor
// promises.
func testConformance(t *testing.T) {
	g := newTiny(t, "conform")
	hypervisortest.Conformance(t, hypervisortest.Config{
		Open: g.open, Driver: g.d, Missing: "no-such-machine",
		Ranges:     []hypervisor.Range{{Start: 0, Size: tinyMemory}},
		ReadTruth:  g.truth,
		Want:       hypervisortest.CanAll,
		Scratch:    hypervisor.Range{Start: 0x20_0000, Size: 200_000},
		GuestWrite: g.write,
	})
}
