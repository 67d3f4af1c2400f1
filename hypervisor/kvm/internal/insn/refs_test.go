package insn

import (
	"encoding/hex"
	"slices"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// The widths are the manuals' (SDM 2).
func TestRefs(t *testing.T) {
	r := hypervisor.Registers{
		RAX: 0x1000, RBX: 0x2000, RCX: 8, RSP: 0x9000, RSI: 0x5000, RDI: 0x6000, RIP: 0x100,
		FS: hypervisor.Segment{Base: 0x70000000},
	}
	for _, c := range []struct {
		code string
		mode Mode
		want []Ref
	}{
		{"8903", Mode64, []Ref{{0x2000, 4, true}}},                     // mov [rbx], eax
		{"668903", Mode64, []Ref{{0x2000, 2, true}}},                   // mov [rbx], ax
		{"48895c8810", Mode64, []Ref{{0x1030, 8, true}}},               // mov [rax+rcx*4+16], rbx
		{"8b03", Mode64, []Ref{{0x2000, 4, false}}},                    // mov eax, [rbx]
		{"c70510000000aabbccdd", Mode64, []Ref{{0x11a, 4, true}}},      // mov dword [rip+16], imm32
		{"64890425f0ffffff", Mode64, []Ref{{0x6ffffff0, 4, true}}},     // mov fs:[-16], eax
		{"55", Mode64, []Ref{{0x8ff8, 8, true}}},                       // push rbp
		{"5d", Mode64, []Ref{{0x9000, 8, false}}},                      // pop rbp
		{"e800000000", Mode64, []Ref{{0x8ff8, 8, true}}},               // call
		{"f348ab", Mode64, []Ref{{0x6000, 8, true}}},                   // rep stosq
		{"f3a4", Mode64, []Ref{{0x5000, 1, false}, {0x6000, 1, true}}}, // rep movsb
		{"0f1103", Mode64, []Ref{{0x2000, 16, true}}},                  // movups [rbx], xmm0
		{"f20f1103", Mode64, []Ref{{0x2000, 8, true}}},                 // movsd [rbx], xmm0
		{"c5fd7f03", Mode64, []Ref{{0x2000, 32, true}}},                // vmovdqa [rbx], ymm0
		{"62f17c481103", Mode64, []Ref{{0x2000, 64, true}}},            // vmovups [rbx], zmm0
		{"f00fb10b", Mode64, []Ref{{0x2000, 4, true}}},                 // lock cmpxchg [rbx], ecx
		{"480fc70b", Mode64, []Ref{{0x2000, 16, true}}},                // cmpxchg16b [rbx]
		{"dd1b", Mode64, []Ref{{0x2000, 8, true}}},                     // fstp qword [rbx]
		{"d93b", Mode64, []Ref{{0x2000, 2, true}}},                     // fnstcw [rbx]
		{"0fae03", Mode64, []Ref{{0x2000, 0, false}}},                  // fxsave [rbx]
		{"8d03", Mode64, nil},                                          // lea
		{"0f1f440000", Mode64, nil},                                    // nop
		{"a20020", Mode16, []Ref{{0x2000, 1, true}}},                   // mov [0x2000], al
		{"ff060020", Mode16, []Ref{{0x2000, 2, true}}},                 // inc word [0x2000]
		{"50", Mode16, []Ref{{0x8ffe, 2, true}}},                       // push ax
		{"8807", Mode32, []Ref{{0x6000, 1, true}}},                     // mov [edi], al
	} {
		code, err := hex.DecodeString(c.code)
		if err != nil {
			t.Fatal(err)
		}
		in, err := Decode(code, c.mode)
		if err != nil || in.Len != len(code) {
			t.Fatalf("%s: %+v, %v", c.code, in, err)
		}
		if got := in.Refs(&r); !slices.Equal(got, c.want) {
			t.Errorf("%s: %+v, want %+v", c.code, got, c.want)
		}
	}
}

// What Exec stores, Refs names.
func TestRefsHaveStores(t *testing.T) {
	r := hypervisor.Registers{RIP: 0x100}
	for i := range 16 {
		*GPR(&r, i) = uint64(0x10000 * (i + 1))
	}
	n := 0
	for op := range 512 {
		for modrm := range 256 {
			code := []byte{0x48, byte(op), byte(modrm), 0x24, 1, 2, 3, 4, 5, 6, 7, 8}
			if op >= 256 {
				code = append([]byte{0x0f}, code[1:]...)
			}
			in, err := Decode(code, Mode64)
			if err != nil {
				continue
			}
			after := r
			st, ok := in.Exec(&after, func(uint64, int) (uint64, bool) { return 5, true })
			if !ok || st.Size == 0 || in.Map == Map0F && in.Opcode != 0xba && in.Opcode&0xc7 == 0x83 { // bit strings
				continue
			}
			n++
			if !slices.ContainsFunc(in.Refs(&r), func(ref Ref) bool {
				return ref.Addr == st.Addr && ref.Size == st.Size && ref.Write
			}) {
				t.Errorf("% x stores %d bytes at %#x, refs are %+v", code[:in.Len], st.Size, st.Addr, in.Refs(&r))
			}
		}
	}
	if n < 1000 {
		t.Errorf("%d stores", n)
	}
}
