package jail

import (
	"golang.org/x/sys/unix"
)

// always allows system calls whatever their arguments.
func always(nrs ...uintptr) (rs []rule) {
	for _, nr := range nrs {
		rs = append(rs, rule{nr: nr})
	}
	return rs
}

// is tests the whole low half of an argument.
func is(arg int, value uint32) test { return test{arg, ^uint32(0), value} }

// ioctls are the requests of a machine that runs, each as a mask and a value.
// Type and number are in the low 16 bits (asm-generic/ioctl.h).
func ioctls() (any [][]test) {
	for _, r := range [][2]uint32{
		{0xffff, 0xae80}, // KVM_RUN: by far the most frequent
		// KVM: of machines and vCPUs, below 0xe0: no new machine (0x01), no
		// device (0xe0), no memory encryption (0xba).
		{0xffff, 0xae03}, // KVM_CHECK_EXTENSION
		{0xffc0, 0xae40},
		{0xffe0, 0xae80},
		{0xfff0, 0xaea0},
		{0xfff8, 0xaeb0},
		{0xffe0, 0xaec0},
		{0xff00, 0xaa00}, // userfaultfd
		{0xff00, 0xaf00}, // vhost
		{^uint32(0), unix.TUNGETIFF},
		{^uint32(0), unix.TUNSETOFFLOAD},
		{^uint32(0), unix.TUNSETVNETHDRSZ},
	} {
		any = append(any, []test{{1, r[0], r[1]}})
	}
	return any
}

// policy is what a machine's process may ask of the kernel once its guest runs.
// pid is its own.
//
// There is no open, no exec, no new process, no socket but pairs, no signal to
// another process, no executable memory, no mount, no key, no BPF. Files come over
// the control socket from clients, who open them with their own rights.
func policy(pid int) []rule {
	const exec = unix.PROT_EXEC
	rules := []rule{
		{nr: unix.SYS_IOCTL, any: ioctls()},
	}
	rules = append(rules, always(
		// Files that are open: disks, tap, eventfds, saved states, sockets.
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV,
		unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_PREADV, unix.SYS_PWRITEV, unix.SYS_PREADV2, unix.SYS_PWRITEV2,
		unix.SYS_LSEEK, unix.SYS_FSTAT, unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_FALLOCATE, unix.SYS_FTRUNCATE,
		unix.SYS_COPY_FILE_RANGE, unix.SYS_FSTATFS,
		unix.SYS_CLOSE, unix.SYS_FCNTL, unix.SYS_DUP, unix.SYS_DUP3,
		unix.SYS_EVENTFD2, unix.SYS_PIPE2,
		unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_WAIT, unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_PWAIT2,
		unix.SYS_POLL, unix.SYS_PPOLL,
		// Clients.
		unix.SYS_ACCEPT4, unix.SYS_SENDMSG, unix.SYS_RECVMSG, unix.SYS_SENDTO, unix.SYS_RECVFROM,
		unix.SYS_SHUTDOWN, unix.SYS_GETSOCKOPT, unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME,
		// Memory.
		unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_MINCORE, unix.SYS_BRK,
		// Threads, their time and signals.
		unix.SYS_FUTEX, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_RSEQ, unix.SYS_SET_ROBUST_LIST,
		unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_GETTIMEOFDAY,
		unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_RESTART_SYSCALL,
		unix.SYS_SETITIMER, unix.SYS_TIMER_CREATE, unix.SYS_TIMER_SETTIME, unix.SYS_TIMER_DELETE,
		unix.SYS_MEMBARRIER, unix.SYS_GETRUSAGE, unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID,
		unix.SYS_GETRANDOM, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
	)...)
	return append(rules,
		rule{nr: unix.SYS_MMAP, any: [][]test{{{2, exec, 0}}}},
		rule{nr: unix.SYS_MPROTECT, any: [][]test{{{2, exec, 0}}}},
		rule{nr: unix.SYS_SOCKETPAIR, any: [][]test{{is(0, unix.AF_UNIX)}}},
		// Threads of this process, and nothing else. clone3 has its flags where
		// no filter can see them: libc takes clone where it is not there.
		rule{nr: unix.SYS_CLONE, any: [][]test{{{0, unix.CLONE_THREAD | unix.CLONE_NEWUSER | unix.CLONE_NEWNS, unix.CLONE_THREAD}}}},
		rule{nr: unix.SYS_CLONE3, code: uint32(unix.ENOSYS), any: [][]test{}},
		rule{nr: unix.SYS_TGKILL, any: [][]test{{is(0, uint32(pid))}}},
		rule{nr: unix.SYS_PRCTL, any: [][]test{{is(0, unix.PR_SET_VMA)}}}, // Go names its memory
	)
}
