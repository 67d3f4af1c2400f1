package linux

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Bounds of tracepoints.
const (
	maxTracepoints = 64 << 10 // of the kernel or of one module
	maxTraceProbes = 1024     // of one tracepoint
)

// traceFields is where the facts of tracepoints lie.
type traceFields struct {
	first, last hypervisor.VirtAddr
	name, funcs field // in struct tracepoint
	span        span
	fn          field // in struct tracepoint_func
	size        uint64
	modPtrs     field // in struct module
	modCount    field
	stub        hypervisor.VirtAddr
}

func (t *traceFields) facts() []fact {
	return []fact{
		{&t.name, 8, must, []string{"tracepoint.name"}},
		{&t.funcs, 8, must, []string{"tracepoint.funcs"}},
		{&t.fn, 8, must, []string{"tracepoint_func.func"}},
		{&t.modPtrs, 8, may, []string{"module.tracepoints_ptrs"}},
		{&t.modCount, 4, may, []string{"module.num_tracepoints"}},
	}
}

func (t *traceFields) symbols() []symbol {
	return []symbol{
		{&t.first, must, []string{"__start___tracepoints_ptrs"}},
		{&t.last, must, []string{"__stop___tracepoints_ptrs"}},
		{&t.stub, may, []string{"tp_stub_func"}},
	}
}

func (t *traceFields) finish(ts types) {
	t.span = spanOf(t.name, t.funcs)
	if n, err := ts.Size("tracepoint_func"); err == nil && n >= 8 && n <= 256 && t.fn.off+8 <= n {
		t.size = n
	}
}

// tracepoints looks at each tracepoint of the kernel and of its modules for
// functions that are called there.
func (l *hookLook) tracepoints(ctx context.Context) error {
	f, err := tableOf[traceFields](l.g, l.cov)
	if err != nil {
		return err
	}
	if f.size == 0 || f.last < f.first {
		return fmt.Errorf("%w: no table of tracepoints", ErrTorn)
	}
	if err := l.tracepointTable(ctx, f, f.first, uint64(f.last-f.first)/4); err != nil {
		return err
	}
	if !f.modPtrs.ok || !f.modCount.ok {
		return nil
	}
	seen := map[hypervisor.VirtAddr]struct{}{}
	for _, r := range l.code.ranges {
		if _, ok := seen[r.module]; ok || r.module == 0 {
			continue
		}
		seen[r.module] = struct{}{}
		o, _, err := l.g.r.object(nil, r.module, spanOf(f.modPtrs, f.modCount))
		if err == nil && o.uint(f.modCount) != 0 {
			err = l.tracepointTable(ctx, f, o.ptr(f.modPtrs), o.uint(f.modCount))
		}
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			l.cov.Add("tracepoints of a module", r.module, err)
		}
	}
	return nil
}

// tracepointTable reads count offsets, each from its own place to a struct
// tracepoint (include/linux/tracepoint-defs.h: tracepoint_ptr_t).
func (l *hookLook) tracepointTable(ctx context.Context, f *traceFields, at hypervisor.VirtAddr, count uint64) error {
	r := &l.g.r
	if count > maxTracepoints {
		return fmt.Errorf("tracepoints: %w: %d", ErrLimit, count)
	}
	if err := r.check(at, at, 4); err != nil {
		return err
	}
	table := make([]byte, 4*count)
	if err := r.full(table, at); err != nil {
		return err
	}
	var buf []byte
	for i := range int(count) {
		if i%ctxEvery == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		tp := at + hypervisor.VirtAddr(4*i) + hypervisor.VirtAddr(int64(int32(binary.LittleEndian.Uint32(table[4*i:]))))
		if err := r.check(at, tp, 8); err != nil {
			return err
		}
		o, b, err := r.object(buf, tp, f.span)
		buf = b
		if err != nil {
			return err
		}
		if funcs := o.ptr(f.funcs); funcs != 0 {
			if err := l.tracepoint(f, tp, o.ptr(f.name), funcs); err != nil {
				l.cov.Add("tracepoint", tp, err)
			}
		}
	}
	return nil
}

// tracepoint adds what the struct tracepoint at tp calls: an array that ends
// with one without a function.
func (l *hookLook) tracepoint(f *traceFields, tp, name, funcs hypervisor.VirtAddr) error {
	r := &l.g.r
	h := Hook{Kind: HookTracepoint, KernelAddress: tp}
	var err error
	if h.Target, err = r.cstring(name, maxAttachName); err != nil {
		return err
	}
	if err := r.check(tp, funcs, 8); err != nil {
		return err
	}
	for i := range hypervisor.VirtAddr(maxTraceProbes) {
		fn, err := r.ptr(funcs + i*hypervisor.VirtAddr(f.size) + hypervisor.VirtAddr(f.fn.off))
		if err != nil || fn == 0 {
			return err
		}
		if fn == f.stub && f.stub != 0 {
			continue // one that was taken away
		}
		if err := l.add(h, fn); err != nil {
			return err
		}
	}
	return fmt.Errorf("functions at a tracepoint: %w: %d", ErrLimit, maxTraceProbes)
}
