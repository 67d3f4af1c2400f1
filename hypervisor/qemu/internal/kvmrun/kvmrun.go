package kvmrun

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/proc"
)

var (
	// ErrNoKVM is returned when the process runs no vCPU under KVM.
	ErrNoKVM = errors.New("the process has no vCPU under KVM")
	// ErrNotRunning is returned when a vCPU makes no exit, because its VM is
	// paused.
	ErrNotRunning = errors.New("a vCPU does not run: the VM is paused")
	// ErrNoKick is returned when the process is not seen to take SIGUSR1 as
	// QEMU does; it is then not sent.
	ErrNoKick = errors.New("no thread takes SIGUSR1 as QEMU's vCPU threads do")
)

const (
	sigKick = unix.SIGUSR1 // SIG_IPI (QEMU's include/sysemu/cpus.h)

	maxVCPUs = 4096
	// kickEvery and giveUp: an exit follows a kick within microseconds on idle
	// hosts; a thread that waits for a busy processor takes longer.
	kickEvery = 20 * time.Millisecond
	giveUp    = 500 * time.Millisecond
	// settleFor lets a store that was under way when kvm_valid_regs was put
	// back come to its end; it takes less than a microsecond.
	settleFor = 50 * time.Microsecond
)

// vcpu is one vCPU's kvm_run page.
type vcpu struct {
	index int
	page  []byte
	old   uint64 // of kvm_valid_regs
	armed bool
}

// Registers returns the registers of the process's vCPUs, in order of their
// index. Each is of the moment of that vCPU's latest exit.
func Registers(ctx context.Context, p *proc.Process) (regs []hypervisor.Registers, err error) {
	fds, err := p.FDs()
	if err != nil {
		return nil, err
	}
	if err := checkSyncRegs(p, fds); err != nil {
		return nil, err
	}
	cpus, err := mapVCPUs(p, fds)
	defer func() {
		for _, c := range cpus {
			c.restore()
			if uerr := unix.Munmap(c.page); err == nil && uerr != nil {
				err = fmt.Errorf("unmap kvm_run: %w", uerr)
			}
		}
	}()
	if err != nil {
		return nil, err
	}
	threads, err := awaitKickable(ctx, p, len(cpus))
	if err != nil {
		return nil, err
	}
	for _, c := range cpus {
		c.arm()
	}
	if err := kick(ctx, p, threads, cpus); err != nil {
		return nil, err
	}
	for _, c := range cpus {
		c.restore()
	}
	time.Sleep(settleFor) //nolint:forbidigo // a store under way gives no sign of its end
	for _, c := range cpus {
		regs = append(regs, decode(c.page[offSyncRegs:], c.index))
	}
	return regs, nil
}

// mapVCPUs maps the kvm_run page of each vCPU. What is mapped is returned with
// an error too.
func mapVCPUs(p *proc.Process, fds map[int]string) ([]*vcpu, error) {
	var cpus []*vcpu
	for fd, link := range fds {
		s, ok := strings.CutPrefix(link, "anon_inode:kvm-vcpu:")
		if !ok {
			continue
		}
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 || len(cpus) >= maxVCPUs {
			return cpus, fmt.Errorf("vCPU descriptor %.64q", link)
		}
		page, err := mapVCPU(p, fd)
		if err != nil {
			return cpus, fmt.Errorf("vCPU %d: %w", n, err)
		}
		cpus = append(cpus, &vcpu{index: n, page: page})
	}
	if len(cpus) == 0 {
		return nil, ErrNoKVM
	}
	slices.SortFunc(cpus, func(a, b *vcpu) int { return a.index - b.index })
	return cpus, nil
}

func mapVCPU(p *proc.Process, fd int) ([]byte, error) {
	own, err := p.FDFromPidfd(fd)
	if err != nil {
		return nil, err
	}
	// Closed at once: the mapping lasts without it.
	defer func() { _ = unix.Close(own) }()
	page, err := unix.Mmap(own, 0, hypervisor.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map kvm_run: %w", err)
	}
	return page, nil
}

// checkSyncRegs asks the process's own /dev/kvm whether KVM stores registers
// (Linux >= 4.17).
func checkSyncRegs(p *proc.Process, fds map[int]string) error {
	for fd, link := range fds {
		if link != "/dev/kvm" {
			continue
		}
		own, err := p.FDFromPidfd(fd)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(own) }()
		mask, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(own), kvmCheckExtension, kvmCapSyncRegs)
		if errno != 0 {
			return fmt.Errorf("KVM_CHECK_EXTENSION: %w", errno)
		}
		if mask&(syncX86Regs|syncX86Sregs) != syncX86Regs|syncX86Sregs {
			return &hypervisor.NotSupportedError{What: "vCPU registers without QMP", Driver: "qemu", Remedy: "needs Linux >= 4.17 (KVM_CAP_SYNC_REGS)"}
		}
		return nil
	}
	return ErrNoKVM
}

// awaitKickable returns the threads that take the kick, at least want. A vCPU's
// thread that begins, or that the C library has shut to signals for a moment,
// takes it a little later.
func awaitKickable(ctx context.Context, p *proc.Process, want int) ([]int, error) {
	for begin := time.Now(); ; {
		threads, err := kickable(p)
		if err != nil || len(threads) >= want {
			return threads, err
		}
		if time.Since(begin) > giveUp {
			return nil, fmt.Errorf("%w: %d threads for %d vCPUs", ErrNoKick, len(threads), want)
		}
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		time.Sleep(time.Millisecond) //nolint:forbidigo // polls: a signal mask gives no event
	}
}

// kickable returns the threads that take the kick.
func kickable(p *proc.Process) ([]int, error) {
	all, err := p.Threads()
	if err != nil {
		return nil, err
	}
	const bit = 1 << (uint(sigKick) - 1)
	var out []int
	for _, tid := range all {
		s, err := p.ThreadSignals(tid)
		if err != nil {
			continue // it ended
		}
		if s.Caught&bit != 0 && s.Blocked&bit == 0 {
			out = append(out, tid)
		}
	}
	return out, p.CheckNow()
}

// arm marks the registers as not yet stored and has KVM store them. Bit 1 of
// RFLAGS is always set, and EFER or CR0 are stored behind it.
func (c *vcpu) arm() {
	word(c.page, offSyncRegs+offRFLAGS).Store(0)
	word(c.page, offSyncRegs+offSregs+offCR0).Store(0)
	c.old = word(c.page, offValidRegs).Swap(syncX86Regs | syncX86Sregs)
	c.armed = true
}

// stored reports whether KVM has stored registers since arm. CR0's ET bit is
// always set.
func (c *vcpu) stored() bool {
	return word(c.page, offSyncRegs+offRFLAGS).Load() != 0 &&
		word(c.page, offSyncRegs+offSregs+offCR0).Load() != 0
}

func (c *vcpu) restore() {
	if c.armed {
		word(c.page, offValidRegs).Store(c.old)
		c.armed = false
	}
}

// kick makes every vCPU exit once, and waits until all have.
func kick(ctx context.Context, p *proc.Process, threads []int, cpus []*vcpu) error {
	pending := func() bool {
		return slices.ContainsFunc(cpus, func(c *vcpu) bool { return !c.stored() })
	}
	begin := time.Now()
	for time.Since(begin) < giveUp {
		for _, tid := range threads {
			if err := p.CheckNow(); err != nil {
				return err
			}
			if err := unix.Tgkill(p.PID, tid, sigKick); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kick vCPU thread: %w", err)
			}
		}
		again := time.Now().Add(kickEvery)
		for wait := 20 * time.Microsecond; time.Now().Before(again); wait = min(2*wait, time.Millisecond) {
			if !pending() {
				return nil
			}
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			time.Sleep(wait) //nolint:forbidigo // polls: a memory page gives no event
		}
	}
	return ErrNotRunning
}

// ValidRegs returns each vCPU's kvm_valid_regs, in order of their index. It is
// 0 unless someone reads registers right now, or died doing so.
func ValidRegs(p *proc.Process) (masks []uint64, err error) {
	fds, err := p.FDs()
	if err != nil {
		return nil, err
	}
	cpus, err := mapVCPUs(p, fds)
	for _, c := range cpus {
		masks = append(masks, word(c.page, offValidRegs).Load())
		err = errors.Join(err, unix.Munmap(c.page))
	}
	return masks, err
}
