package vmm

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// vmlinux takes the ELF kernel out of a bzImage, by the payload that its header
// names (Documentation/arch/x86/boot.rst), with the programs of its compression.
func vmlinux(t *testing.T, k *lab.Kernel) string {
	t.Helper()
	b, err := os.ReadFile(k.Image)
	if err != nil {
		t.Fatal(err)
	}
	start := (int(b[0x1f1])+1)*512 + int(binary.LittleEndian.Uint32(b[0x248:]))
	payload := b[start : start+int(binary.LittleEndian.Uint32(b[0x24c:]))-4] // the size is behind it
	for magic, program := range map[string]string{"\x02\x21\x4c\x18": "lz4", "\x28\xb5\x2f\xfd": "zstd", "\xfd7zXZ": "xz"} {
		if !bytes.HasPrefix(payload, []byte(magic)) {
			continue
		}
		if _, err := exec.LookPath(program); err != nil {
			labtest.Missing(t, "no %s here", program)
		}
		path := filepath.Join(t.TempDir(), "vmlinux")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd := exec.CommandContext(t.Context(), program, "-dc")
		cmd.Stdin, cmd.Stdout = bytes.NewReader(payload), f
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %v", program, err)
		}
		return path
	}
	t.Fatalf("payload begins with %x", payload[:8])
	return ""
}
