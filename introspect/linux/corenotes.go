package linux

import (
	"bytes"
	"encoding/binary"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Types of notes (include/uapi/linux/elf.h).
const (
	ntPRStatus = 1
	ntPRPSInfo = 3
	ntAUXV     = 6
	ntFile     = 0x46494c45
)

// Sizes of the notes' structures on x86-64 (include/linux/elfcore.h).
const (
	prStatusLen = 336 // struct elf_prstatus
	prPSInfoLen = 136 // struct elf_prpsinfo
	prFnameLen  = 16
	prArgsLen   = 80 // ELF_PRARGSZ
)

// coreNote appends a note of the owner CORE.
func coreNote(b []byte, kind uint32, desc []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, 5) // of "CORE" and its NUL
	b = binary.LittleEndian.AppendUint32(b, uint32(len(desc)))
	b = binary.LittleEndian.AppendUint32(b, kind)
	b = append(b, "CORE\x00\x00\x00\x00"...)
	b = append(b, desc...)
	return append(b, make([]byte, -len(desc)&3)...)
}

func corePRStatus(c *coreThread) []byte {
	b := make([]byte, prStatusLen)
	le := binary.LittleEndian
	le.PutUint64(b[16:], c.pending)
	le.PutUint64(b[24:], c.blocked)
	le.PutUint32(b[32:], uint32(c.task.pid))
	le.PutUint32(b[36:], uint32(c.ppid))
	copy(b[112:], c.regs[:])
	return b
}

func corePRPSInfo(p *Process, t *task) []byte {
	b := make([]byte, prPSInfoLen)
	le := binary.LittleEndian
	const letters = "RSDTtXZP"
	letter := t.letter()
	if i := strings.Index(letters, letter); i >= 0 {
		b[0] = byte(i)
	}
	b[1] = letter[0]
	if letter == "Z" {
		b[2] = 1
	}
	le.PutUint64(b[8:], uint64(t.flags))
	le.PutUint32(b[16:], uint32(p.UID))
	le.PutUint32(b[20:], uint32(p.GID))
	le.PutUint32(b[24:], uint32(p.PID))
	le.PutUint32(b[28:], uint32(p.PPID))
	copy(b[40:40+prFnameLen-1], p.Comm)
	copy(b[56:56+prArgsLen-1], strings.Join(p.Args, " "))
	return b
}

// coreAUXV returns the auxiliary vector up to its end, AT_NULL.
func coreAUXV(auxv []byte) []byte {
	for i := 0; i+16 <= len(auxv); i += 16 {
		if binary.LittleEndian.Uint64(auxv[i:]) == 0 {
			return auxv[:i+16]
		}
	}
	return auxv[:len(auxv)&^15]
}

// coreFiles makes the note of mapped files; nil when there are none.
func coreFiles(vmas []VMA) []byte {
	var names bytes.Buffer
	var ranges []byte
	n := uint64(0)
	for i := range vmas {
		v := &vmas[i]
		if v.file == 0 || names.Len()+len(v.Path) > maxCoreNames {
			continue
		}
		n++
		for _, x := range []uint64{uint64(v.Start), uint64(v.End), v.Offset / hypervisor.PageSize} {
			ranges = binary.LittleEndian.AppendUint64(ranges, x)
		}
		names.WriteString(strings.ReplaceAll(v.Path, "\x00", "?"))
		names.WriteByte(0)
	}
	if n == 0 {
		return nil
	}
	b := binary.LittleEndian.AppendUint64(nil, n)
	b = binary.LittleEndian.AppendUint64(b, hypervisor.PageSize)
	return append(append(b, ranges...), names.Bytes()...)
}

// maxCoreNames bounds the names in a core; the kernel's own bound is 4 MiB
// (fs/binfmt_elf.c: MAX_FILE_NOTE_SIZE).
const maxCoreNames = 4 << 20
