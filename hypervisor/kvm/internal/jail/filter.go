package jail

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (linux/seccomp.h).
const (
	dataNr   = 0
	dataArch = 4
	dataArgs = 16 // eight bytes each; the low half first
)

// Codes of the classic BPF that seccomp takes (linux/bpf_common.h).
const (
	bpfLoad  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	bpfAnd   = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	bpfEqual = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	bpfAtOr  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	bpfRet   = unix.BPF_RET | unix.BPF_K
)

// Results of a filter (linux/seccomp.h).
const (
	retKill  = 0x8000_0000 // SECCOMP_RET_KILL_PROCESS
	retErrno = 0x0005_0000 // SECCOMP_RET_ERRNO
	retAllow = 0x7fff_0000 // SECCOMP_RET_ALLOW
)

// x32Bit marks system calls of the x32 ABI, which has other numbers.
const x32Bit = 0x4000_0000

// test is what one argument of a system call must be: its low 32 bits, under a
// mask.
type test struct {
	arg         int
	mask, value uint32
}

// rule allows one system call: always, or when all tests of one alternative hold.
type rule struct {
	nr   uintptr
	any  [][]test // nil: always
	code uint32   // errno of what is not allowed; 0: EPERM
}

// assemble makes a filter of rules: what none of them allows ends in EPERM, and a
// call of another architecture in the end of the process.
func assemble(rules []rule) ([]unix.SockFilter, error) {
	p := []unix.SockFilter{
		{Code: bpfLoad, K: dataArch},
		{Code: bpfEqual, K: unix.AUDIT_ARCH_X86_64, Jt: 1},
		{Code: bpfRet, K: retKill},
		{Code: bpfLoad, K: dataNr},
		{Code: bpfAtOr, K: x32Bit, Jf: 1},
		{Code: bpfRet, K: retKill},
	}
	for _, r := range rules {
		block, err := r.assemble()
		if err != nil {
			return nil, err
		}
		// A block does not come back: it ends in a return.
		if len(block) > 255 {
			return nil, fmt.Errorf("seccomp: the rule of system call %d is too long", r.nr)
		}
		p = append(p, unix.SockFilter{Code: bpfEqual, K: uint32(r.nr), Jf: uint8(len(block))})
		p = append(p, block...)
	}
	p = append(p, unix.SockFilter{Code: bpfRet, K: retErrno | uint32(unix.EPERM)})
	if len(p) > unix.BPF_MAXINSNS {
		return nil, errors.New("seccomp: the filter is too long")
	}
	return p, nil
}

func (r *rule) assemble() ([]unix.SockFilter, error) {
	var p []unix.SockFilter
	for _, all := range r.any {
		// Each test needs a load, a mask and a jump to the next alternative.
		n := 3*len(all) + 1
		for i, t := range all {
			if t.arg < 0 || t.arg > 5 || t.value&^t.mask != 0 {
				return nil, fmt.Errorf("seccomp: system call %d: test %+v", r.nr, t)
			}
			p = append(p,
				unix.SockFilter{Code: bpfLoad, K: uint32(dataArgs + 8*t.arg)},
				unix.SockFilter{Code: bpfAnd, K: t.mask},
				unix.SockFilter{Code: bpfEqual, K: t.value, Jf: uint8(n - 3*(i+1))},
			)
		}
		p = append(p, unix.SockFilter{Code: bpfRet, K: retAllow})
	}
	if r.any == nil && r.code == 0 {
		return []unix.SockFilter{{Code: bpfRet, K: retAllow}}, nil
	}
	code := r.code
	if code == 0 {
		code = uint32(unix.EPERM)
	}
	return append(p, unix.SockFilter{Code: bpfRet, K: retErrno | code}), nil
}
