package linux

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Bounds of a look at the guest's sockets.
const (
	maxSockets    = 1 << 20
	maxSockChains = 1 << 10 // chains of one table that may be broken before it is given up
	maxSockNets   = 64 << 10
	sockChunk     = 64 << 10 // bytes of a table that are read in one go
)

// sockKind is a kind of table in which the kernel finds sockets.
type sockKind uint16

const (
	sockTCP    sockKind = 1 << iota // connections: inet_hashinfo.ehash
	sockListen                      // inet_hashinfo.listening_hash, or lhash2
	sockAddrs                       // lhash2 beside listening_hash
	sockUDP
	sockUDPLite
	sockRaw4
	sockRaw6
	sockPing
	sockUnix
	sockNetlink
	sockPacket
	sockXDP
)

// sockTable is one table and how it is walked.
type sockTable struct {
	kind     sockKind
	name     string
	families []uint16
	node     field // the links of an entry, in its structure
	// endIsSlot: a chain ends with the number of its slot, as the kernel too
	// checks, since an entry may be moved to another chain while it is looked at
	// (include/linux/list_nulls.h).
	endIsSlot bool
	// locks: bit 0 of a head is a lock (include/linux/rhashtable.h).
	locks bool
}

// sockWalk is one look at the guest's sockets. It is for one goroutine.
type sockWalk struct {
	g    *Guest
	f    *sockFields
	ctx  context.Context
	live bool
	buf  []byte

	socks    map[hypervisor.VirtAddr]*sock
	order    []*sock
	nets     map[hypervisor.VirtAddr]uint32
	netOrder []hypervisor.VirtAddr
	walked   map[hypervisor.VirtAddr]struct{} // tables, so that none is walked twice
	whole    sockKind                         // kinds of which all tables were found
	broken   sockKind                         // kinds of which one could not be walked to its end
	chainID  uint32
	left     int    // entries that may still be met
	bytes    uint64 // of tables that may still be read
	problems []problem
	lost     int // problems that were not kept

	owners sockOwners
}

func (g *Guest) newSockWalk(ctx context.Context, f *sockFields) *sockWalk {
	total := hypervisor.TotalSize(g.mem.Ranges())
	const (
		perSocket = 1 << 10 // a struct sock, its struct socket and inode
		least     = 4096
	)
	return &sockWalk{
		g: g, f: f, ctx: ctx, live: hypervisor.IsLive(g.mem),
		socks: map[hypervisor.VirtAddr]*sock{}, nets: map[hypervisor.VirtAddr]uint32{},
		walked: map[hypervisor.VirtAddr]struct{}{},
		left:   int(min(max(total/perSocket, least), maxSockets)),
		// What the kernel itself allows one table (mm/mm_init.c:
		// alloc_large_system_hash) is a sixteenth.
		bytes:  max(total/4, 16<<20),
		owners: newSockOwners(),
	}
}

func (w *sockWalk) bad(what string, at hypervisor.VirtAddr, err error) {
	if len(w.problems) < maxSockChains {
		w.problems = append(w.problems, problem{what, at, err})
	} else {
		w.lost++
	}
}

var errSockSlots = errors.New("number of slots")

// array walks the chains of a table of count heads at base, each at headOff in
// a slot of stride bytes. The table is not whole when a part cannot be read.
func (w *sockWalk) array(t *sockTable, base hypervisor.VirtAddr, count, stride, headOff uint64) error {
	if _, ok := w.walked[base]; ok {
		return nil
	}
	w.walked[base] = struct{}{}
	if stride == 0 || headOff+8 > stride || count > w.bytes/stride {
		w.broken |= t.kind
		w.bad(t.name, base, fmt.Errorf("%w: %w: %d", ErrTorn, errSockSlots, count))
		return nil
	}
	w.bytes -= count * stride
	if err := w.g.r.check(base, base, 8); err != nil {
		w.broken |= t.kind
		w.bad(t.name, base, err)
		return nil
	}
	perChunk := sockChunk / stride
	chunk := make([]byte, min(count, perChunk)*stride)
	failed := 0
	for first := uint64(0); first < count; first += perChunk {
		if w.ctx.Err() != nil {
			return w.ctx.Err()
		}
		n := min(perChunk, count-first)
		at := base + hypervisor.VirtAddr(first*stride)
		b := chunk[:n*stride]
		if err := w.pages(b, at); err != nil {
			w.broken |= t.kind
			w.bad(t.name, at, err)
			failed++
		}
		for i := range n {
			head := binary.LittleEndian.Uint64(b[i*stride+headOff:])
			if t.locks {
				head &^= 1
			}
			if head == 0 || head&1 != 0 {
				continue // an end marker: the chain is empty
			}
			where := at + hypervisor.VirtAddr(i*stride+headOff)
			if err := w.chain(t, where, first+i, hypervisor.VirtAddr(head)); err != nil {
				if w.ctx.Err() != nil {
					return w.ctx.Err()
				}
				w.broken |= t.kind
				w.bad(t.name, where, err)
				if failed++; failed >= maxSockChains || w.left < 0 {
					w.bad(t.name, base, fmt.Errorf("%w: %d broken chains", ErrLimit, failed))
					return nil
				}
			}
		}
	}
	return nil
}

// pages reads p at va, and leaves zeros where that cannot be: page by page
// then, so that one page that is not there costs no other.
func (w *sockWalk) pages(p []byte, va hypervisor.VirtAddr) error {
	err := w.g.r.full(p, va)
	if err == nil {
		return nil
	}
	for len(p) > 0 {
		n := min(len(p), int(hypervisor.PageSize-va.Offset()))
		if w.g.r.full(p[:n], va) != nil {
			clear(p[:n])
		}
		p, va = p[n:], va+hypervisor.VirtAddr(n)
	}
	return err
}

// chain walks one chain, on a live guest again when it is found torn: its head,
// which lies at where, is read anew then.
func (w *sockWalk) chain(t *sockTable, where hypervisor.VirtAddr, slot uint64, head hypervisor.VirtAddr) error {
	rounds := 1
	if w.live {
		rounds = liveRounds
	}
	var err error
	for i := range rounds {
		if i > 0 {
			if head, err = w.g.r.ptr(where); err != nil {
				return err
			}
			if t.locks {
				head &^= 1
			}
		}
		if err = w.entries(t, where, slot, head); err == nil || w.ctx.Err() != nil || w.left < 0 {
			break
		}
	}
	return err
}

func (w *sockWalk) entries(t *sockTable, where hypervisor.VirtAddr, slot uint64, cur hypervisor.VirtAddr) error {
	w.chainID++
	last := where
	for n := 0; cur != 0 && cur&1 == 0; n++ {
		if n%ctxEvery == ctxEvery-1 && w.ctx.Err() != nil {
			return w.ctx.Err()
		}
		if w.left--; w.left < 0 {
			return fmt.Errorf("%w: too many sockets", ErrLimit)
		}
		if err := w.g.r.check(last, cur, 8); err != nil {
			return err
		}
		addr := cur - hypervisor.VirtAddr(t.node.off)
		s, next, err := w.entry(t, addr)
		if err != nil {
			return err
		}
		if !slices.Contains(t.families, s.family) {
			return &PointerError{Where: last, Value: cur, Err: fmt.Errorf("%w: a socket of family %d", ErrTorn, s.family)}
		}
		if s.chain == w.chainID || s.in&t.kind != 0 && !w.live {
			return &PointerError{Where: last, Value: cur, Err: ErrCycle}
		}
		s.chain = w.chainID
		s.in |= t.kind
		last, cur = cur, next
	}
	if t.endIsSlot && uint64(cur)>>1 != slot {
		return &PointerError{Where: last, Value: cur, Err: fmt.Errorf("%w: the end of another chain", ErrTorn)}
	}
	return nil
}

// entry returns the socket at addr and what its links in t lead to.
func (w *sockWalk) entry(t *sockTable, addr hypervisor.VirtAddr) (*sock, hypervisor.VirtAddr, error) {
	s, ok := w.socks[addr]
	if !ok {
		s = &sock{addr: addr}
	}
	var next hypervisor.VirtAddr
	o, buf, err := w.g.r.object(w.buf, addr, w.f.commonSpan)
	w.buf = buf
	if err != nil {
		return nil, 0, err
	}
	s.common(w.f, o)
	if t.node == w.f.node {
		next = o.links(t.node).next
	} else if next, err = w.g.r.ptr(addr + hypervisor.VirtAddr(t.node.off)); err != nil {
		return nil, 0, err
	}
	if !ok && slices.Contains(t.families, s.family) {
		w.keep(s)
	}
	return s, next, nil
}

func (w *sockWalk) keep(s *sock) {
	w.socks[s.addr] = s
	w.order = append(w.order, s)
}
