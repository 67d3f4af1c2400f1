package linux

import (
	"bytes"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/paging"
)

// Bounds of one process's arguments.
const (
	maxArgsBytes = 128 << 10
	maxArgs      = 16 << 10
	// maxTitle is how much of a process's own title is read, where it has
	// written over its arguments.
	maxTitle = 4096
)

// program returns what the process with the given mm runs. What could not be
// read is left out and told.
func (d *details) program(mm hypervisor.VirtAddr) (program, []problem) {
	if img, ok := d.programs[mm]; ok {
		return img, nil
	}
	var img program
	f := &d.g.lay.mm
	if err := d.g.r.check(mm, mm, 8); err != nil {
		return img, []problem{{"mm", mm, err}}
	}
	o, buf, err := d.g.r.object(d.buf, mm, f.span)
	d.buf = buf
	if err != nil {
		return img, []problem{{"mm", mm, err}}
	}
	var probs []problem
	if file := o.ptr(f.exeFile); file != 0 {
		if img.exe, err = d.paths.ofFile(file); err != nil {
			probs = append(probs, problem{"exe", file, err})
		}
	}
	if img.args, err = d.args(o); err != nil {
		probs = append(probs, problem{"args", o.ptr(f.argStart), err})
	}
	if len(probs) == 0 {
		d.programs[mm] = img
	}
	return img, probs
}

// args returns the arguments of the process whose mm is o, read from its own
// memory as /proc/PID/cmdline does.
func (d *details) args(o object) ([]string, error) {
	f := &d.g.lay.mm
	start, end := o.ptr(f.argStart), o.ptr(f.argEnd)
	if !f.argStart.ok || !f.argEnd.ok || !f.pgd.ok || start >= end {
		return nil, nil
	}
	if end > maxUserAddr {
		return nil, fmt.Errorf("%w: from %#x to %#x", ErrTorn, uint64(start), uint64(end))
	}
	as, err := d.g.space(o.addr, o.ptr(f.pgd))
	if err != nil {
		return nil, fmt.Errorf("page table: %w", err)
	}
	var limited error
	n := uint64(end - start)
	if limit := uint64(min(maxArgsBytes, max(d.text, 0))); n > limit {
		limited = fmt.Errorf("%w: %d of %d bytes", ErrLimit, limit, n)
		n = limit
	}
	b, err := d.readUser(as, start, n)
	if err == nil && limited == nil && len(b) > 0 && b[len(b)-1] != 0 {
		b, err = d.title(as, b, start, o)
	}
	d.text -= len(b)
	args, ok := splitArgs(b)
	if !ok && limited == nil {
		limited = fmt.Errorf("%w: %d arguments", ErrLimit, maxArgs)
	}
	if err == nil {
		err = limited
	}
	return args, err
}

// title returns the text of a process that has written its title over its
// arguments (setproctitle), which the missing NUL at their end tells: it may
// go on over the environment, up to its own NUL.
func (d *details) title(as *paging.AddressSpace, b []byte, start hypervisor.VirtAddr, o object) ([]byte, error) {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i], nil
	}
	envEnd := o.ptr(d.g.lay.mm.envEnd)
	end := start + hypervisor.VirtAddr(len(b))
	if envEnd <= end || envEnd > maxUserAddr {
		return b, nil
	}
	more, err := d.readUser(as, end, min(uint64(envEnd-end), maxTitle))
	if i := bytes.IndexByte(more, 0); i >= 0 {
		return append(b, more[:i]...), nil
	}
	return append(b, more...), err
}

// splitArgs splits the text of a command line at its NULs. ok is false when
// there are more arguments than are kept.
func splitArgs(b []byte) (args []string, ok bool) {
	if len(b) == 0 {
		return nil, true
	}
	b = bytes.TrimSuffix(b, []byte{0})
	n := min(bytes.Count(b, []byte{0})+1, maxArgs)
	text := string(b) // one allocation for all of them
	args = make([]string, 0, n)
	for len(args) < n {
		i := 0
		for i < len(text) && text[i] != 0 {
			i++
		}
		args = append(args, text[:i])
		if i == len(text) {
			return args, true
		}
		text = text[i+1:]
	}
	return args, false
}

// readUser reads n bytes at va in as, up to the first that is not there. It
// keeps nothing of the translation, so that a listing of many processes does
// not pay for a cache in each.
func (d *details) readUser(as *paging.AddressSpace, va hypervisor.VirtAddr, n uint64) ([]byte, error) {
	out := make([]byte, 0, n)
	for i := 0; uint64(len(out)) < n; i++ {
		if i%ctxEvery == 0 && d.ctx.Err() != nil {
			return out, d.ctx.Err()
		}
		at := va + hypervisor.VirtAddr(len(out))
		m, err := as.Walk(at)
		if err != nil {
			return out, err
		}
		size := min(n-uint64(len(out)), m.Size-uint64(at-m.Virt))
		p := out[len(out) : len(out)+int(size)]
		k, err := d.g.mem.ReadPhys(p, m.At(at))
		out = out[:len(out)+min(max(k, 0), len(p))]
		if k < len(p) {
			return out, fmt.Errorf("read gva %#x: %w", uint64(at), err)
		}
	}
	return out, nil
}
