package linux

import (
	"context"
	"iter"

	"github.com/vantage-vmi/vantage/introspect"
)

// Every listing has a form for loops, named Each:
//
//	for p, err := range g.EachProcess(ctx, linux.ProcessOptions{}) {
//		if err != nil {
//			return err // what came before it holds
//		}
//		…
//	}
//
// The walk is made when the loop begins, each time anew. Its elements come in
// the listing's order, each with a nil error. When something was missed, one
// more pair comes at the end, of the zero value and the error: that of the
// listing (ctx's, if it has ended), else an *introspect.IncompleteError with what
// the coverage says.

// eachOf makes such a loop of a listing.
func eachOf[T any](list func() ([]T, *introspect.Coverage, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		items, cov, err := list()
		for _, item := range items {
			if !yield(item, nil) {
				return
			}
		}
		if err == nil {
			err = cov.Err()
		}
		if err != nil {
			var zero T
			yield(zero, err)
		}
	}
}

// EachProcess loops over what Processes lists. The last pair may be an error
// alone: that of Processes, or an *introspect.IncompleteError.
func (g *Guest) EachProcess(ctx context.Context, opt ProcessOptions) iter.Seq2[Process, error] {
	return eachOf(func() ([]Process, *introspect.Coverage, error) {
		l, err := g.Processes(ctx, opt)
		return l.Processes, l.Coverage, err
	})
}

// EachModule loops over what Modules lists. The last pair may be an error alone:
// that of Modules, or an *introspect.IncompleteError.
func (g *Guest) EachModule(ctx context.Context) iter.Seq2[Module, error] {
	return eachOf(func() ([]Module, *introspect.Coverage, error) {
		l, err := g.Modules(ctx)
		return l.Modules, l.Coverage, err
	})
}

// EachVMA loops over the mappings of p that VMAs lists. The last pair may be an
// error alone: that of VMAs, or an *introspect.IncompleteError.
func (g *Guest) EachVMA(ctx context.Context, p Process) iter.Seq2[VMA, error] {
	return eachOf(func() ([]VMA, *introspect.Coverage, error) { return g.VMAs(ctx, p) })
}

// EachFile loops over what Files lists. The last pair may be an error alone:
// that of Files, or an *introspect.IncompleteError.
func (g *Guest) EachFile(ctx context.Context, opt FileOptions) iter.Seq2[File, error] {
	return eachOf(func() ([]File, *introspect.Coverage, error) {
		l, err := g.Files(ctx, opt)
		return l.Files, l.Coverage, err
	})
}

// EachSocket loops over what Sockets lists. The last pair may be an error alone:
// that of Sockets, or an *introspect.IncompleteError.
func (g *Guest) EachSocket(ctx context.Context, opt SocketOptions) iter.Seq2[Socket, error] {
	return eachOf(func() ([]Socket, *introspect.Coverage, error) {
		l, err := g.Sockets(ctx, opt)
		return l.Sockets, l.Coverage, err
	})
}

// EachArea loops over the memory areas of p that Maps lists. The last pair may be
// an error alone: that of Maps, or an *introspect.IncompleteError.
func (g *Guest) EachArea(ctx context.Context, p Process, opt MapOptions) iter.Seq2[Area, error] {
	return eachOf(func() ([]Area, *introspect.Coverage, error) {
		l, err := g.Maps(ctx, p, opt)
		return l.Areas, l.Coverage, err
	})
}

// EachMount loops over what Mounts lists. The last pair may be an error alone:
// that of Mounts, or an *introspect.IncompleteError.
func (g *Guest) EachMount(ctx context.Context) iter.Seq2[Mount, error] {
	return eachOf(func() ([]Mount, *introspect.Coverage, error) {
		l, err := g.Mounts(ctx)
		return l.Mounts, l.Coverage, err
	})
}

// EachInterface loops over what Interfaces lists. The last pair may be an error
// alone: that of Interfaces, or an *introspect.IncompleteError.
func (g *Guest) EachInterface(ctx context.Context) iter.Seq2[Interface, error] {
	return eachOf(func() ([]Interface, *introspect.Coverage, error) {
		l, err := g.Interfaces(ctx)
		return l.Interfaces, l.Coverage, err
	})
}

// EachLogRecord loops over what KernelLog returns. The last pair may be an error
// alone: that of KernelLog, or an *introspect.IncompleteError.
func (g *Guest) EachLogRecord(ctx context.Context) iter.Seq2[LogRecord, error] {
	return eachOf(func() ([]LogRecord, *introspect.Coverage, error) {
		l, err := g.KernelLog(ctx)
		return l.Records, l.Coverage, err
	})
}

// EachCachedFile loops over what CachedFiles lists. The last pair may be an
// error alone: that of CachedFiles, or an *introspect.IncompleteError.
func (g *Guest) EachCachedFile(ctx context.Context) iter.Seq2[CachedFile, error] {
	return eachOf(func() ([]CachedFile, *introspect.Coverage, error) {
		l, err := g.CachedFiles(ctx)
		return l.Files, l.Coverage, err
	})
}

// EachHook loops over what Hooks lists. The last pair may be an error alone: that
// of Hooks, or an *introspect.IncompleteError.
func (g *Guest) EachHook(ctx context.Context, opt HookOptions) iter.Seq2[Hook, error] {
	return eachOf(func() ([]Hook, *introspect.Coverage, error) {
		l, err := g.Hooks(ctx, opt)
		return l.Hooks, l.Coverage, err
	})
}

// EachTimer loops over what Timers lists. The last pair may be an error alone:
// that of Timers, or an *introspect.IncompleteError.
func (g *Guest) EachTimer(ctx context.Context) iter.Seq2[Timer, error] {
	return eachOf(func() ([]Timer, *introspect.Coverage, error) {
		l, err := g.Timers(ctx)
		return l.Timers, l.Coverage, err
	})
}

// EachKey loops over what Keys lists. The last pair may be an error alone: that
// of Keys, or an *introspect.IncompleteError.
func (g *Guest) EachKey(ctx context.Context) iter.Seq2[Key, error] {
	return eachOf(func() ([]Key, *introspect.Coverage, error) {
		l, err := g.Keys(ctx)
		return l.Keys, l.Coverage, err
	})
}
