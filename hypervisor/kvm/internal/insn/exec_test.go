package insn

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// processor is a program that lets this machine's processor do one instruction
// at a time: registers, memory and code on its standard input, registers and
// memory as they are behind the instruction on its standard output.
const processor = `
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#define CODE ((uint8_t *)0x10000000)
#define MEM ((uint8_t *)0x20000000)
static struct { uint64_t regs[16], flags; uint8_t code[16], mem[4096]; } in;
static struct { uint64_t regs[16], flags, rip, signal; uint8_t mem[4096]; } out;
static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
	REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
static gregset_t saved;
static int inside;
static void trap(int sig, siginfo_t *si, void *p) {
	ucontext_t *u = p;
	greg_t *g = u->uc_mcontext.gregs;
	if (!inside) {
		memcpy(saved, g, sizeof saved);
		for (int i = 0; i < 16; i++) g[order[i]] = in.regs[i];
		g[REG_EFL] = in.flags;
		g[REG_RIP] = (uint64_t)CODE + 0x800;
		inside = 1;
		return;
	}
	for (int i = 0; i < 16; i++) out.regs[i] = g[order[i]];
	out.flags = g[REG_EFL];
	out.rip = g[REG_RIP];
	out.signal = sig;
	memcpy(g, saved, sizeof saved);
	inside = 0;
}
int main(void) {
	static uint8_t stack[65536];
	stack_t ss = {.ss_sp = stack, .ss_size = sizeof stack};
	struct sigaction sa = {.sa_sigaction = trap, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
	int sigs[] = {SIGTRAP, SIGSEGV, SIGILL, SIGBUS, SIGFPE};
	sigaltstack(&ss, 0);
	for (int i = 0; i < 5; i++) sigaction(sigs[i], &sa, 0);
	if (mmap(CODE, 4096, 7, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != CODE) return 1;
	if (mmap(MEM, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MEM) return 1;
	while (fread(&in, sizeof in, 1, stdin) == 1) {
		memset(CODE, 0xcc, 4096);
		memcpy(CODE + 0x800, in.code, 16);
		memcpy(MEM, in.mem, 4096);
		asm volatile("int3" ::: "memory");
		memcpy(out.mem, MEM, 4096);
		fwrite(&out, sizeof out, 1, stdout);
		fflush(stdout);
	}
}`

const (
	codeAt = 0x10000800
	memAt  = 0x20000000
)

type machine struct {
	Regs  [16]uint64
	Flags uint64
	Code  [16]byte
	Mem   [4096]byte
}

type after struct {
	Regs               [16]uint64
	Flags, RIP, Signal uint64
	Mem                [4096]byte
}

func startProcessor(t *testing.T) (io.Writer, io.Reader) {
	t.Helper()
	cc, err := exec.LookPath("cc")
	if err != nil {
		labtest.Missing(t, "no C compiler here")
	}
	if runtime.GOARCH != "amd64" {
		labtest.Missing(t, "not an x86-64 processor")
	}
	dir := t.TempDir()
	file, bin := filepath.Join(dir, "processor.c"), filepath.Join(dir, "processor")
	if err := os.WriteFile(file, []byte(processor), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), cc, "-w", "-O1", "-fcf-protection=none", "-o", bin, file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), bin)
	w, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.Close()
		if err := cmd.Wait(); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	})
	return w, bufio.NewReaderSize(r, 1<<16)
}

// random makes an instruction that Exec may know: prefixes, an opcode of the
// first two maps, random bytes behind it.
func random(rnd *rand.Rand) [16]byte {
	var code [16]byte
	for i := range code {
		code[i] = byte(rnd.Uint32())
	}
	n := 0
	put := func(b byte) { code[n] = b; n++ }
	if rnd.IntN(6) == 0 {
		put(0x66)
	}
	if rnd.IntN(8) == 0 {
		put(0xf0)
	}
	if rnd.IntN(8) == 0 {
		put([]byte{0xf2, 0xf3}[rnd.IntN(2)])
	}
	if rnd.IntN(2) == 0 {
		put(0x40 | byte(rnd.IntN(16)))
	}
	if rnd.IntN(3) == 0 {
		put(0x0f)
	}
	return code
}

// Exec does what the processor does: registers, defined flags, memory, and where
// it goes on.
func TestExec(t *testing.T) {
	w, r := startProcessor(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	want := 30_000
	if testing.Short() {
		want = 6_000
	}
	done := map[string]int{}
	for tested := 0; tested < want; {
		m := machine{Code: random(rnd), Flags: 0x202 | rnd.Uint64()&(arithmetic|FlagDF)}
		in, err := Decode(m.Code[:], Mode64)
		if err != nil || in.Seg != 0 {
			continue
		}
		for i := in.Len; i < 16; i++ {
			m.Code[i] = 0xcc
		}
		for i := range m.Mem {
			m.Mem[i] = byte(rnd.Uint32())
		}
		if in.Map == MapOne && (in.Opcode&0xfe == 0xc2 || in.Opcode == 0xff) { // where they go
			for i := 2048; i < 2048+256; i++ {
				m.Mem[i] = []byte{0x40, 0x08, 0x00, 0x10, 0, 0, 0, 0}[i%8]
			}
		}
		for i := range m.Regs {
			m.Regs[i] = rnd.Uint64()
			if rnd.IntN(4) == 0 {
				m.Regs[i] = uint64(int64(int8(m.Regs[i]))) // carries, equal values
			}
			if in.Mem || i == rSP || i == rBP {
				m.Regs[i] = memAt + 2048 + rnd.Uint64N(64)&^7
				if rnd.IntN(4) == 0 {
					m.Regs[i]++
				}
			}
		}
		if in.Rep != 0 {
			m.Regs[rCX] = rnd.Uint64N(2) // the processor does all of them
		}
		if in.Opcode&0xfc == 0xa4 || in.Opcode&0xfe == 0xaa {
			m.Regs[rSI], m.Regs[rDI] = memAt+1000+rnd.Uint64N(8), memAt+1000+rnd.Uint64N(8)
		}
		regs := hypervisor.Registers{RIP: codeAt, RFLAGS: m.Flags}
		for i, v := range m.Regs {
			*GPR(&regs, i) = v
		}
		mem := m.Mem
		load := func(addr uint64, size int) (uint64, bool) {
			if addr < memAt || addr+uint64(size) > memAt+4096 {
				return 0, false
			}
			var b [8]byte
			copy(b[:], mem[addr-memAt:][:size])
			return binary.LittleEndian.Uint64(b[:]), true
		}
		st, ok := in.Exec(&regs, load)
		// A branch must end on an INT3 of the page, to be seen.
		if !ok || regs.RIP < codeAt-0x800 || regs.RIP >= codeAt+0x800 ||
			st.Size > 0 && (st.Addr < memAt || st.Addr+uint64(st.Size) > memAt+4096) {
			continue
		}
		if d := regs.RIP - codeAt; int64(d) > 0 && int(d) < in.Len {
			continue // into itself
		}
		if regs.RIP == codeAt {
			continue // a loop
		}
		if st.Size > 0 {
			var b [8]byte
			binary.LittleEndian.PutUint64(b[:], st.Value)
			copy(mem[st.Addr-memAt:], b[:st.Size])
		}
		if err := binary.Write(w, binary.LittleEndian, &m); err != nil {
			t.Fatal(err)
		}
		var a after
		if err := binary.Read(r, binary.LittleEndian, &a); err != nil {
			t.Fatal(err)
		}
		tested++
		done[fmt.Sprintf("%d:%02x", in.Map, in.Opcode)]++
		if a.Signal != 5 {
			t.Fatalf("% x: signal %d", m.Code[:in.Len], a.Signal)
		}
		for i, v := range a.Regs {
			if got := *GPR(&regs, i); got != v {
				t.Errorf("% x: register %d is %#x, the processor says %#x (was %#x)", m.Code[:in.Len], i, got, v, m.Regs[i])
			}
		}
		if got := uint64(regs.RIP); got != a.RIP-1 {
			t.Errorf("% x: rip %#x, the processor says %#x", m.Code[:in.Len], got, a.RIP-1)
		}
		mask := uint64(arithmetic | FlagDF)
		if logical(&in) {
			mask &^= FlagAF // undefined
		}
		if in.Map == Map0F && (in.Opcode&0xc7 == 0x83 && in.Opcode >= 0xa3 || in.Opcode == 0xba) {
			mask = FlagCF | FlagZF // BT and its like: the others are undefined
		}
		if got := regs.RFLAGS; (got^a.Flags)&mask != 0 {
			t.Errorf("% x: flags %#x, the processor says %#x (were %#x)", m.Code[:in.Len], got&mask, a.Flags&mask, m.Flags)
		}
		if mem != a.Mem {
			t.Errorf("% x: memory differs; store %+v", m.Code[:in.Len], st)
		}
		if t.Failed() {
			t.Fatalf("%+v\nbefore %#x", in, m.Regs)
		}
	}
	// What functions begin with, stores, and read-change-write must have been there.
	for _, op := range []string{"0:01", "0:29", "0:31", "0:39", "0:50", "0:58", "0:63", "0:68", "0:6a", "0:74", "0:81", "0:83", "0:85", "0:87", "0:88", "0:89", "0:8b", "0:8d", "0:90",
		"0:98", "0:99", "0:a4", "0:ab", "0:b8", "0:c3", "0:c7", "0:c9", "0:c2", "0:eb", "0:f7", "0:ff", "1:1f", "1:44", "1:94", "1:ab", "1:ba", "1:b1", "1:b6", "1:bf", "1:c1", "1:c3"} {
		if done[op] == 0 && !testing.Short() {
			t.Errorf("opcode %s was never tried", op)
		}
	}
	t.Logf("%d instructions of %d opcodes", want, len(done))
}

// logical reports whether in leaves AF undefined.
func logical(in *Inst) bool {
	op := in.Opcode
	if in.Map != MapOne {
		return false
	}
	switch {
	case op < 0x40:
		n := op >> 3
		return n == 1 || n == 4 || n == 6
	case op >= 0x80 && op <= 0x83:
		n := in.ext()
		return n == 1 || n == 4 || n == 6
	case op == 0x84, op == 0x85, op == 0xa8, op == 0xa9:
		return true
	case op == 0xf6, op == 0xf7:
		return in.ext() < 2
	}
	return false
}
