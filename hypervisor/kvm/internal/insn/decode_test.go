package insn

import (
	"bufio"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/arch/x86/x86asm"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// FuzzDecode decodes hostile bytes, and compares lengths with x86asm's.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		"90", "0f1f440000", "660f1f840000000000", "f30f1efa", "55", "4889e5", "4881ec00010000", "4883ec20", "31c0",
		"48b88877665544332211", "f0480fb10b", "c5f877", "c4e2f1af00", "62f17c4811047f", "8fe97883c1", "676666662e0f1f840000000000",
		"e800000000", "66e80000", "c8100001", "a30011223344556677", "f604250010000001", "f714250010000000", "0f0fc0b4",
		"660f78c00102", "f30f78", "2e2e2e2e2e2e2e2e2e2e2e2e2e2e2e2e", "40404040404040404040404040404040", "c5", "62", "8fe8",
	} {
		b, err := hex.DecodeString(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, byte(2))
		f.Add(b, byte(1))
		f.Add(b, byte(0))
	}
	f.Fuzz(func(t *testing.T, code []byte, m byte) {
		mode := [...]Mode{Mode16, Mode32, Mode64}[m%3]
		in, err := Decode(code, mode)
		if err != nil {
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrTruncated) {
				t.Fatal(err)
			}
			return
		}
		if in.Len < 1 || in.Len > MaxLen || in.Len > len(code) {
			t.Fatalf("length %d of %x", in.Len, code)
		}
		// The bytes behind it do not matter, and none of its own is spare.
		if again, err := Decode(code[:in.Len], mode); err != nil || again != in {
			t.Fatalf("%x: %+v, %+v, %v", code[:in.Len], in, again, err)
		}
		if _, err := Decode(code[:in.Len-1], mode); !errors.Is(err, ErrTruncated) && in.Len > 1 {
			t.Fatalf("%x is whole one byte earlier: %v", code[:in.Len], err)
		}
		if theirs, err := x86asm.Decode(code, int(mode)); err == nil && theirs.Len != in.Len && !disputed(&in, theirs) {
			t.Fatalf("%x: we say %d bytes, x86asm %d (%v)", code[:min(len(code), 16)], in.Len, theirs.Len, theirs)
		}
	})
}

// disputed are the instructions of which x86asm 0.32.0 is known to say something
// else than the manuals.
func disputed(in *Inst, theirs x86asm.Inst) bool {
	switch {
	case in.Encoding != Legacy: // it reads VEX and its like as LES, LDS, BOUND, POP
		return true
	case theirs.Op == 0: // a prefix alone
		return true
	case in.Map == Map0F && (in.Opcode == 0x0f || in.Opcode == 0x78 || in.Opcode == 0xb8):
		return true
	case in.Map == Map0F && in.Opcode >= 0x20 && in.Opcode <= 0x23: // mod is not looked at (SDM 2B, MOV)
		return true
	}
	return false
}

// What a disassembler says of the instructions of a library that has a variant
// of its hot functions for every extension there is.
func TestLengths(t *testing.T) {
	objdump, err := exec.LookPath("objdump")
	if err != nil {
		labtest.Missing(t, "no objdump here")
	}
	lib := "/lib/x86_64-linux-gnu/libc.so.6"
	if _, err := os.Stat(lib); err != nil {
		labtest.Missing(t, "no %s here", lib)
	}
	cmd := exec.CommandContext(t.Context(), objdump, "-d", "-w", "-j", ".text", lib)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n, vector, wrong := 0, 0, 0
	for s := bufio.NewScanner(out); s.Scan(); {
		fields := strings.Split(s.Text(), "\t")
		if len(fields) < 3 || strings.Contains(fields[2], "(bad)") {
			continue
		}
		code, err := hex.DecodeString(strings.ReplaceAll(fields[1], " ", ""))
		if err != nil {
			t.Fatalf("%q: %v", s.Text(), err)
		}
		// FWAIT and a prefix without an instruction are lines of their own there.
		in, err := Decode(append(code[:len(code):len(code)], 0x90), Mode64)
		if err != nil || in.Len != len(code) {
			if strings.HasPrefix(fields[2], "rex") || strings.HasPrefix(fields[2], "fst") || strings.HasPrefix(fields[2], "fin") {
				continue
			}
			if wrong++; wrong < 20 {
				t.Errorf("%s: we say %d bytes, %v", s.Text(), in.Len, err)
			}
		}
		n++
		if in.Encoding != Legacy {
			vector++
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d instructions, %d of them with VEX or EVEX", n, vector)
	if n < 100_000 || vector < 1000 {
		t.Errorf("%d instructions, %d with VEX or EVEX: what was looked at?", n, vector)
	}
}
