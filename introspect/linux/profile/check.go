package profile

import (
	"bytes"
	"errors"
	"log/slog"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// minPassed is how many checks must pass when one fails. Each looks at what a
// rootkit may have changed for its own reasons (a hooked system call, a false
// banner): one that fails is told, and ends nothing.
const minPassed = 2

// check looks whether known symbols land on plausible bytes, through the
// kernel's own page table. It returns a *SanityError when too few do. A symbol
// that is not there is no contradiction: without CONFIG_KALLSYMS_ALL there are
// none of data.
func (k *Kernel) check(log *slog.Logger) error {
	passed := 0
	var first, missing *SanityError
	for _, c := range []func() *SanityError{k.checkText, k.checkBanner, k.checkInitTask, k.checkSyscalls} {
		err := c()
		if err == nil {
			passed++
			continue
		}
		if errors.Is(err, ErrNoSymbol) {
			log.Debug("not checked: no such symbol", "symbol", err.Symbol)
			missing = err
			continue
		}
		log.Warn("a kernel symbol does not land on what it names", "symbol", err.Symbol, "addr", err.Addr, "error", err)
		if first == nil {
			first = err
		}
	}
	if first != nil && passed < minPassed {
		return first
	}
	if passed == 0 {
		return missing
	}
	return nil
}

// lookup finds name and reads into p from it.
func (k *Kernel) lookup(name, want string, p []byte) (Symbol, *SanityError) {
	s, err := k.Symbols.Lookup(name)
	if err != nil {
		return s, &SanityError{Symbol: name, Want: want, Err: err}
	}
	if n, err := k.Space.ReadVirt(p, s.Addr); err != nil {
		return s, &SanityError{Symbol: name, Addr: s.Addr + hypervisor.VirtAddr(n), Want: want, Err: err}
	}
	return s, nil
}

// checkText: _text (or _stext, with text symbols only) is where the page table
// maps the image to.
func (k *Kernel) checkText() *SanityError {
	const want = "the start of the kernel's image"
	s, bad := k.lookup("_text", want, nil)
	if bad != nil {
		return bad
	}
	m, err := k.Space.Translate(s.Addr)
	if err == nil && s.Addr == k.VirtBase && m.At(s.Addr) == k.PhysBase {
		return nil
	}
	return &SanityError{Symbol: s.Name, Addr: s.Addr, Want: want, Err: err}
}

func (k *Kernel) checkBanner() *SanityError {
	const want = `"Linux version …"`
	var b [len(bannerMark)]byte
	s, bad := k.lookup("linux_banner", want, b[:])
	if bad == nil && string(b[:]) != bannerMark {
		bad = &SanityError{Symbol: s.Name, Addr: s.Addr, Want: want}
	}
	return bad
}

// checkInitTask: the first task is named "swapper/0", or "swapper" with one CPU.
func (k *Kernel) checkInitTask() *SanityError {
	const want = `task "swapper/0"`
	b := make([]byte, 16)
	if f, err := k.Types.Field("task_struct.comm"); err == nil && f.Size == uint64(len(b)) && f.Offset < 1<<16 {
		b = make([]byte, f.Offset+f.Size)
		s, bad := k.lookup("init_task", want, b)
		if bad == nil && !bytes.HasPrefix(b[f.Offset:], []byte("swapper")) {
			bad = &SanityError{Symbol: s.Name, Addr: s.Addr, Want: want}
		}
		return bad
	}
	// Without types: somewhere in it.
	b = make([]byte, 8<<10)
	s, bad := k.lookup("init_task", want, b)
	if bad == nil && !bytes.Contains(b, []byte("swapper")) {
		bad = &SanityError{Symbol: s.Name, Addr: s.Addr, Want: want}
	}
	return bad
}

// checkSyscalls: most of the system call table points to text.
func (k *Kernel) checkSyscalls() *SanityError {
	const want = "pointers to the kernel's text"
	const count = 64
	var b [8 * count]byte
	s, bad := k.lookup("sys_call_table", want, b[:])
	if bad != nil {
		return bad
	}
	lo, err := k.Symbols.Lookup("_stext")
	if err == nil {
		var hi Symbol
		if hi, err = k.Symbols.Lookup("_etext"); err == nil {
			inside := 0
			for i := range count {
				if v := hypervisor.VirtAddr(leUint64(b[8*i:])); v >= lo.Addr && v < hi.Addr {
					inside++
				}
			}
			if inside > count/2 {
				return nil
			}
		}
	}
	return &SanityError{Symbol: s.Name, Addr: s.Addr, Want: want, Err: err}
}
