package kvmrun

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// The constants are the kernel headers', as a C compiler sees them.
func TestABI(t *testing.T) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		labtest.Missing(t, "no C compiler here")
	}
	want := []struct {
		expr string
		got  uint64
	}{
		{"KVM_CHECK_EXTENSION", kvmCheckExtension},
		{"KVM_CAP_SYNC_REGS", kvmCapSyncRegs},
		{"KVM_SYNC_X86_REGS", syncX86Regs},
		{"KVM_SYNC_X86_SREGS", syncX86Sregs},
		{"offsetof(struct kvm_run, kvm_valid_regs)", offValidRegs},
		{"offsetof(struct kvm_run, s)", offSyncRegs},
		{"sizeof(struct kvm_regs)", sizeRegs},
		{"sizeof(struct kvm_sregs)", sizeSregs},
		{"offsetof(struct kvm_sync_regs, regs)", 0},
		{"offsetof(struct kvm_sync_regs, sregs)", offSregs},
		{"offsetof(struct kvm_regs, rax)", 0},
		{"offsetof(struct kvm_regs, rsp)", 48},
		{"offsetof(struct kvm_regs, rbp)", 56},
		{"offsetof(struct kvm_regs, r15)", 120},
		{"offsetof(struct kvm_regs, rip)", offRIP},
		{"offsetof(struct kvm_regs, rflags)", offRFLAGS},
		{"sizeof(struct kvm_segment)", sizeSegment},
		{"offsetof(struct kvm_segment, limit)", 8},
		{"offsetof(struct kvm_segment, selector)", 12},
		{"offsetof(struct kvm_segment, type)", 14},
		{"offsetof(struct kvm_segment, present)", 15},
		{"offsetof(struct kvm_segment, dpl)", 16},
		{"offsetof(struct kvm_segment, db)", 17},
		{"offsetof(struct kvm_segment, s)", 18},
		{"offsetof(struct kvm_segment, l)", 19},
		{"offsetof(struct kvm_segment, g)", 20},
		{"offsetof(struct kvm_segment, avl)", 21},
		{"sizeof(struct kvm_dtable)", sizeDtable},
		{"offsetof(struct kvm_dtable, limit)", 8},
		{"offsetof(struct kvm_sregs, ds)", 1 * sizeSegment},
		{"offsetof(struct kvm_sregs, tr)", 6 * sizeSegment},
		{"offsetof(struct kvm_sregs, ldt)", 7 * sizeSegment},
		{"offsetof(struct kvm_sregs, gdt)", offGDT},
		{"offsetof(struct kvm_sregs, idt)", offIDT},
		{"offsetof(struct kvm_sregs, cr0)", offCR0},
		{"offsetof(struct kvm_sregs, cr2)", offCR2},
		{"offsetof(struct kvm_sregs, cr3)", offCR3},
		{"offsetof(struct kvm_sregs, cr4)", offCR4},
		{"offsetof(struct kvm_sregs, efer)", offEFER},
		{"SIGUSR1", uint64(sigKick)},
	}
	var src strings.Builder
	src.WriteString("#include <linux/kvm.h>\n#include <signal.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {\n")
	for _, w := range want {
		fmt.Fprintf(&src, "printf(\"%%llu\\n\", (unsigned long long)(%s));\n", w.expr)
	}
	src.WriteString("return 0; }\n")
	dir := t.TempDir()
	file, bin := filepath.Join(dir, "abi.c"), filepath.Join(dir, "abi")
	if err := os.WriteFile(file, []byte(src.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(cc, "-o", bin, file).CombinedOutput(); err != nil {
		if bytes.Contains(out, []byte("linux/kvm.h")) {
			labtest.Missing(t, "no kernel headers here: %s", out)
		}
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.Command(bin).Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(string(out))
	if len(lines) != len(want) {
		t.Fatalf("%d lines, want %d", len(lines), len(want))
	}
	for i, w := range want {
		if lines[i] != fmt.Sprint(w.got) {
			t.Errorf("%s is %s, we have %d", w.expr, lines[i], w.got)
		}
	}
	if sigKick != unix.SIGUSR1 {
		t.Error("the kick is not SIGUSR1")
	}
}

func TestDecode(t *testing.T) {
	b := make([]byte, sizeSyncRegs)
	for i := range b[:sizeRegs] {
		b[i] = byte(i / 8)
	}
	cs := b[offSregs:]
	copy(cs, []byte{0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x10, 0, 11, 1, 0, 0, 1, 1, 1, 0, 0, 0})
	b[offSregs+offGDT], b[offSregs+offGDT+8] = 0x10, 0x7f
	b[offSregs+offEFER+1] = 0xd
	r := decode(b, 3)
	if r.VCPU != 3 || r.Valid != hypervisor.GroupGeneral|hypervisor.GroupSegments|hypervisor.GroupControl {
		t.Errorf("vCPU %d, valid %b", r.VCPU, r.Valid)
	}
	if r.RSP != 0x0606060606060606 || r.RBP != 0x0707070707070707 || r.R15 != 0x0f0f0f0f0f0f0f0f || r.RIP != 0x1010101010101010 {
		t.Errorf("general registers: %+v", r)
	}
	// What QEMU prints as flags 00af9b00 for a 64-bit code segment.
	if want := (hypervisor.Segment{Selector: 0x10, Limit: 0xffffffff, Attributes: 0xa09b}); r.CS != want {
		t.Errorf("CS = %+v, want %+v", r.CS, want)
	}
	if r.GDT != (hypervisor.Table{Base: 0x10, Limit: 0x7f}) || r.EFER != 0xd00 {
		t.Errorf("GDT %+v, EFER %#x", r.GDT, r.EFER)
	}
}
