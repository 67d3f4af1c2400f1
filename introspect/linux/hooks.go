package linux

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
)

// maxHooks bounds the hooks of one look at the guest.
const maxHooks = 1 << 20

// Hooks lists what makes the kernel run other code than its own: probes in the
// kernel and in programs, followers of functions, hooks in the network's path and
// at tracepoints. Kinds that the kernel has not are left out.
func (g *Guest) Hooks(ctx context.Context, opt HookOptions) (HookList, error) {
	var best HookList
	for i := range g.rounds() {
		l, err := g.hookLook(ctx, opt)
		if err != nil {
			return HookList{Coverage: &introspect.Coverage{}}, fmt.Errorf("list hooks: %w", err)
		}
		if i == 0 || l.Coverage.Total() < best.Coverage.Total() {
			best = l
		}
		if l.Coverage.Complete() {
			break
		}
	}
	return best, nil
}

// hookLook is one look at the guest's hooks.
type hookLook struct {
	g     *Guest
	cov   *introspect.Coverage
	code  *codeMap
	paths *paths
	hooks []Hook
}

func (g *Guest) hookLook(ctx context.Context, opt HookOptions) (HookList, error) {
	l := &hookLook{g: g, cov: &introspect.Coverage{}, paths: newPaths(&g.r, &g.lay.fs), hooks: []Hook{}}
	var err error
	if l.code, err = g.codeMap(ctx, l.cov); err != nil {
		return HookList{}, err
	}
	for _, part := range []struct {
		kind HookKind
		walk func(context.Context) error
	}{
		{HookKprobe, l.kprobes},
		{HookUprobe, l.uprobes},
		{HookFtrace, l.ftrace},
		{HookNetfilter, l.netfilter},
		{HookTracepoint, l.tracepoints},
	} {
		if len(opt.Kinds) > 0 && !slices.Contains(opt.Kinds, part.kind) {
			continue
		}
		err := part.walk(ctx)
		switch {
		case err == nil, errors.Is(err, profile.ErrNoType), errors.Is(err, profile.ErrNoSymbol):
		case ctx.Err() != nil:
			return HookList{}, ctx.Err()
		default:
			l.cov.Add(string(part.kind)+" hooks", 0, err)
		}
	}
	slices.SortStableFunc(l.hooks, func(a, b Hook) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Net, b.Net), cmp.Compare(a.Interface, b.Interface), cmp.Compare(a.Target, b.Target),
			cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.KernelAddress, b.KernelAddress), cmp.Compare(a.Function.Address, b.Function.Address))
	})
	return HookList{Hooks: l.hooks, Coverage: l.cov}, nil
}

// add adds h, which calls the code at fn.
func (l *hookLook) add(h Hook, fn hypervisor.VirtAddr) error {
	if len(l.hooks) >= maxHooks {
		return fmt.Errorf("hooks: %w: %d", ErrLimit, maxHooks)
	}
	h.Function = l.code.owner(fn)
	h.Suspicious = h.Function.Unknown()
	if h.Flags == nil {
		h.Flags = []string{}
	}
	l.hooks = append(l.hooks, h)
	return nil
}
