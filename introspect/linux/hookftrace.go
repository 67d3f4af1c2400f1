package linux

import (
	"context"
	"fmt"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Bounds of ftrace's users.
const (
	maxFtraceOps     = 64 << 10
	maxFtraceBits    = 20 // of a hash's number of buckets; FTRACE_HASH_MAX_BITS is 12
	maxFtraceEntries = 256 << 10
	maxHookFunctions = 64 // named of one user
)

// Flags of a struct ftrace_ops (include/linux/ftrace.h, FTRACE_OPS_FL_*).
var ftraceFlags = []struct {
	bit  uint64
	name string
}{
	{1 << 2, "save_regs"}, {1 << 12, "ipmodify"}, {1 << 13, "pid"}, {1 << 16, "permanent"}, {1 << 17, "direct"},
}

// ftraceFields is where the facts of ftrace's users lie.
type ftraceFields struct {
	head, end                     hypervisor.VirtAddr
	fn, saved, next, flags, hash  field // in struct ftrace_ops
	direct                        field
	span                          span
	filter                        field // in struct ftrace_ops_hash
	bits, buckets, count          field // in struct ftrace_hash
	hashSpan                      span
	entryNode, entryIP, entryCall field // in struct ftrace_func_entry
	entrySpan                     span
}

func (f *ftraceFields) facts() []fact {
	return []fact{
		{&f.fn, 8, must, []string{"ftrace_ops.func"}},
		{&f.saved, 8, may, []string{"ftrace_ops.saved_func"}},
		{&f.next, 8, must, []string{"ftrace_ops.next"}},
		{&f.flags, 8, want, []string{"ftrace_ops.flags"}},
		{&f.hash, 8, want, []string{"ftrace_ops.func_hash"}},
		{&f.direct, 8, may, []string{"ftrace_ops.direct_call"}}, // since 6.4
		{&f.filter, 8, want, []string{"ftrace_ops_hash.filter_hash"}},
		{&f.bits, 8, want, []string{"ftrace_hash.size_bits"}},
		{&f.buckets, 8, want, []string{"ftrace_hash.buckets"}},
		{&f.count, 8, want, []string{"ftrace_hash.count"}},
		{&f.entryNode, 16, want, []string{"ftrace_func_entry.hlist"}},
		{&f.entryIP, 8, want, []string{"ftrace_func_entry.ip"}},
		{&f.entryCall, 8, may, []string{"ftrace_func_entry.direct"}},
	}
}

func (f *ftraceFields) symbols() []symbol {
	return []symbol{
		{&f.head, must, []string{"ftrace_ops_list"}},
		{&f.end, must, []string{"ftrace_list_end"}},
	}
}

func (f *ftraceFields) finish(types) {
	f.span = spanOf(f.fn, f.saved, f.next, f.flags, f.hash, f.direct)
	f.hashSpan = spanOf(f.bits, f.buckets, f.count)
	f.entrySpan = spanOf(f.entryNode, f.entryIP, f.entryCall)
}

// ftrace walks the list of those that follow the kernel's functions.
func (l *hookLook) ftrace(ctx context.Context) error {
	f, err := tableOf[ftraceFields](l.g, l.cov)
	if err != nil {
		return err
	}
	at, err := l.g.r.ptr(f.head)
	if err != nil {
		return err
	}
	seen := map[hypervisor.VirtAddr]struct{}{}
	last := f.head
	for at != 0 && at != f.end {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := l.g.r.check(last, at, 8); err != nil {
			return err
		}
		if _, ok := seen[at]; ok {
			return &PointerError{Where: last, Value: at, Err: ErrCycle}
		}
		if len(seen) >= maxFtraceOps {
			return fmt.Errorf("followers of functions: %w: %d", ErrLimit, maxFtraceOps)
		}
		seen[at] = struct{}{}
		o, _, err := l.g.r.object(nil, at, f.span)
		if err != nil {
			return err
		}
		if err := l.follower(ctx, f, o); err != nil {
			return err
		}
		last, at = at, o.ptr(f.next)
	}
	return nil
}

// follower adds the struct ftrace_ops o.
func (l *hookLook) follower(ctx context.Context, f *ftraceFields, o object) error {
	h := Hook{Kind: HookFtrace, KernelAddress: o.addr, Functions: []string{}}
	flags := o.uint(f.flags)
	for _, x := range ftraceFlags {
		if flags&x.bit != 0 {
			h.Flags = append(h.Flags, x.name)
		}
	}
	fn := o.ptr(f.fn)
	if saved := o.ptr(f.saved); saved != 0 {
		fn = saved // func is then only what checks the pid first
	}
	if direct := o.ptr(f.direct); direct != 0 {
		fn = direct // what the function itself jumps to
	}
	if err := l.followed(ctx, f, &h, o.ptr(f.hash)); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		l.cov.Add("functions that are followed", o.addr, err)
	}
	slices.Sort(h.Functions)
	if h.Target = "every function"; len(h.Functions) > 0 {
		h.Target = h.Functions[0]
		h.Functions = h.Functions[:min(len(h.Functions), maxHookFunctions)]
	}
	return l.add(h, fn)
}

// followed reads which functions the struct ftrace_ops_hash at hash chooses:
// all when its filter is empty.
func (l *hookLook) followed(ctx context.Context, f *ftraceFields, h *Hook, hash hypervisor.VirtAddr) error {
	r := &l.g.r
	if !f.hash.ok || !f.filter.ok || !f.bits.ok || !f.buckets.ok || !f.entryNode.ok || !f.entryIP.ok {
		return nil
	}
	if err := r.check(h.KernelAddress, hash, 8); err != nil {
		return err
	}
	filter, err := r.ptr(hash + hypervisor.VirtAddr(f.filter.off))
	if err != nil || filter == 0 {
		return err
	}
	if err := r.check(hash, filter, 8); err != nil {
		return err
	}
	o, _, err := r.object(nil, filter, f.hashSpan)
	if err != nil {
		return err
	}
	count, bits, buckets := o.uint(f.count), o.uint(f.bits), o.ptr(f.buckets)
	if count == 0 {
		return nil
	}
	if bits > maxFtraceBits || count > maxFtraceEntries {
		return fmt.Errorf("%w: %d functions, %d bits", ErrLimit, count, bits)
	}
	if err := r.check(filter, buckets, 8); err != nil {
		return err
	}
	heads := make([]byte, 8<<bits)
	if err := r.full(heads, buckets); err != nil {
		return err
	}
	for i, first := range pointers(heads) {
		if first == 0 {
			continue
		}
		err := r.walkHList(ctx, buckets+hypervisor.VirtAddr(8*i), maxFtraceEntries, func(node hypervisor.VirtAddr) error {
			e, _, err := r.object(nil, node-hypervisor.VirtAddr(f.entryNode.off), f.entrySpan)
			if err != nil {
				return err
			}
			if h.FunctionCount++; h.FunctionCount > count {
				return fmt.Errorf("%w: more than %d functions", ErrTorn, count)
			}
			h.Functions = append(h.Functions, l.functionName(e.ptr(f.entryIP)))
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// functionName names the function that has an instruction at addr: where ftrace
// calls from is at its beginning or, behind an endbr64, four bytes in.
func (l *hookLook) functionName(addr hypervisor.VirtAddr) string {
	c := l.code.owner(addr)
	if c.Symbol != "" && c.Offset <= 4 {
		c.Offset = 0
	}
	return c.String()
}
