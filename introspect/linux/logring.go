package linux

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// States of a descriptor, in the two top bits of its state_var (enum desc_state
// in kernel/printk/printk_ringbuffer.h).
const (
	logReserved  = 0 // its writer has not written it
	logCommitted = 1 // written, but may be extended
	// 2: finalized, it does not change any more
	logReusable = 3
	// logIDMask: below the state lies the descriptor's id (DESC_ID_MASK).
	logIDMask    = 1<<62 - 1
	logStateBits = 62
	// logDataless: a position with this bit is none (LPOS_DATALESS), and
	// logEmpty is that of a text without bytes (NO_LPOS, EMPTY_LINE_LPOS).
	logDataless = 1
	logEmpty    = 3
	// logChunk is how many descriptors are read at a time.
	logChunk = 256
)

// logTable is where the facts of the lockless ring buffer lie.
type logTable struct {
	prb                                     hypervisor.VirtAddr // a pointer to the ring
	countBits, descs, infos, headID, tailID field               // of printk_ringbuffer.desc_ring
	sizeBits, data                          field               // of printk_ringbuffer.text_data_ring
	span                                    span
	state, begin, next                      field // in struct prb_desc
	seq, stamp, textLen, facility           field // in struct printk_info
	caller, comm, subsystem, device         field
	level, flags                            bitMember
	infoSpan                                span
	descSize, infoSize, idSize              uint64
}

func (l *logTable) facts() []fact {
	return []fact{
		{&l.countBits, 4, must, []string{"printk_ringbuffer.desc_ring.count_bits"}},
		{&l.descs, 8, must, []string{"printk_ringbuffer.desc_ring.descs"}},
		{&l.infos, 8, must, []string{"printk_ringbuffer.desc_ring.infos"}},
		{&l.headID, 8, must, []string{"printk_ringbuffer.desc_ring.head_id"}},
		{&l.tailID, 8, must, []string{"printk_ringbuffer.desc_ring.tail_id"}},
		{&l.sizeBits, 4, must, []string{"printk_ringbuffer.text_data_ring.size_bits"}},
		{&l.data, 8, must, []string{"printk_ringbuffer.text_data_ring.data"}},
		{&l.state, 8, must, []string{"prb_desc.state_var"}},
		{&l.begin, 8, must, []string{"prb_desc.text_blk_lpos.begin"}},
		{&l.next, 8, must, []string{"prb_desc.text_blk_lpos.next"}},
		{&l.seq, 8, must, []string{"printk_info.seq"}},
		{&l.stamp, 8, want, []string{"printk_info.ts_nsec"}},
		{&l.textLen, 2, must, []string{"printk_info.text_len"}},
		{&l.facility, 1, want, []string{"printk_info.facility"}},
		{&l.caller, 4, want, []string{"printk_info.caller_id"}},
		{&l.comm, 16, may, []string{"printk_info.comm"}}, // CONFIG_PRINTK_EXECUTION_CTX, since 6.19
		{&l.subsystem, 0, want, []string{"printk_info.dev_info.subsystem"}},
		{&l.device, 0, want, []string{"printk_info.dev_info.device"}},
	}
}

func (l *logTable) symbols() []symbol { return []symbol{{&l.prb, must, []string{"prb"}}} }

func (l *logTable) finish(t types) {
	l.level, l.flags = bitMemberOf(t, "printk_info.level"), bitMemberOf(t, "printk_info.flags")
	l.span = spanOf(l.countBits, l.descs, l.infos, l.headID, l.tailID, l.sizeBits, l.data)
	l.infoSpan = spanOf(l.seq, l.stamp, l.textLen, l.facility, l.level.at, l.flags.at, l.caller, l.comm, l.subsystem, l.device)
	l.descSize, l.infoSize, l.idSize = 24, 88, 8
	for name, to := range map[string]*uint64{"prb_desc": &l.descSize, "printk_info": &l.infoSize, "prb_data_block": &l.idSize} {
		if n, err := t.Size(name); err == nil && n > 0 && n <= maxField {
			*to = n
		}
	}
}

// usable reports whether the structures hold what is read of them.
func (l *logTable) usable() bool {
	d := spanOf(l.state, l.begin, l.next)
	return d.hi <= l.descSize && l.infoSpan.hi <= l.infoSize && l.idSize >= 8
}

// logWalk reads the records of one ring.
type logWalk struct {
	ctx  context.Context
	r    *reader
	t    *logTable
	live bool
	left int // bytes of text that may still be kept
	cov  *introspect.Coverage
	add  func(LogRecord)

	count, size        uint64 // of descriptors; of the text ring in bytes
	descs, infos, data hypervisor.VirtAddr
}

// ring reads the ring that the pointer at prb leads to. An error means that
// nothing could be read.
func (w *logWalk) ring(prb hypervisor.VirtAddr) error {
	if !w.t.usable() {
		return fmt.Errorf("types of the ring: %w", ErrTorn)
	}
	at, err := w.r.ptr(prb)
	if err == nil {
		err = w.r.check(prb, at, 8)
	}
	if err != nil {
		return err
	}
	o, _, err := w.r.object(nil, at, w.t.span)
	if err != nil {
		return err
	}
	countBits, sizeBits := o.uint(w.t.countBits), o.uint(w.t.sizeBits)
	if countBits == 0 || countBits > maxLogBits || sizeBits == 0 || sizeBits > maxLogBits {
		return fmt.Errorf("ring at %#x: %w: 2^%d records of 2^%d bytes", uint64(at), ErrTorn, countBits, sizeBits)
	}
	w.count, w.size = 1<<countBits, 1<<sizeBits
	w.descs, w.infos, w.data = o.ptr(w.t.descs), o.ptr(w.t.infos), o.ptr(w.t.data)
	for _, p := range []hypervisor.VirtAddr{w.descs, w.infos, w.data} {
		if err := w.r.check(at, p, 8); err != nil {
			return err
		}
	}
	head, tail := o.uint(w.t.headID)&logIDMask, o.uint(w.t.tailID)&logIDMask
	n := (head-tail)&logIDMask + 1
	limit := min(w.count, maxLogRecords)
	if n > w.count {
		w.cov.Add("kernel log", at, fmt.Errorf("%w: %d records of %d", ErrTorn, n, w.count))
	} else if n > limit {
		w.cov.Add("kernel log", at, fmt.Errorf("%w: %d records", ErrLimit, limit))
	}
	if n > limit {
		n, tail = limit, (head-limit+1)&logIDMask // the newest
	}
	for done := uint64(0); done < n; {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		id := (tail + done) & logIDMask
		// A chunk does not go over the end of the arrays.
		k := min(n-done, logChunk, w.count-id&(w.count-1))
		if !w.chunk(id, k) {
			return nil
		}
		done += k
	}
	return w.ctx.Err()
}

// chunk reads the n records from id on, which lie side by side. more is false
// when no more text may be kept.
func (w *logWalk) chunk(id, n uint64) (more bool) {
	index := id & (w.count - 1)
	descs, infos := make([]byte, n*w.t.descSize), make([]byte, n*w.t.infoSize)
	descAt, infoAt := logAddr(w.descs, index*w.t.descSize), logAddr(w.infos, index*w.t.infoSize)
	if err := w.r.full(descs, descAt); err != nil {
		w.cov.Add("descriptors of the kernel log", descAt, err)
		return true
	}
	if err := w.r.full(infos, infoAt); err != nil {
		w.cov.Add("records of the kernel log", infoAt, err)
		return true
	}
	for i := range n {
		d := object{addr: logAddr(descAt, i*w.t.descSize), data: descs[i*w.t.descSize : (i+1)*w.t.descSize]}
		f := object{addr: logAddr(infoAt, i*w.t.infoSize), data: infos[i*w.t.infoSize : (i+1)*w.t.infoSize]}
		if !w.record((id+i)&logIDMask, d, f) {
			return false
		}
	}
	return true
}

// record adds the record of descriptor d, which should have this id. On a live
// guest it is read again when its descriptor has changed meanwhile.
func (w *logWalk) record(id uint64, d, f object) (more bool) {
	rounds := 1
	if w.live {
		rounds = liveRounds
		if ahead := (d.uint(w.t.state) - id) & logIDMask; ahead != 0 && ahead <= logIDMask/2 {
			return true // overwritten since the walk began
		}
	}
	var last error
	for range rounds {
		rec, there, err := w.read(id, d, f)
		if w.live {
			was := d.uint(w.t.state)
			fresh := object{addr: d.addr, data: make([]byte, w.t.descSize)}
			if e := w.r.full(fresh.data, d.addr); e != nil {
				last = e
				continue
			}
			if now := fresh.uint(w.t.state); now != was {
				if now&logIDMask != id {
					return true // overwritten, as it would be for a reader in the guest
				}
				d, f = fresh, object{addr: f.addr, data: make([]byte, w.t.infoSize)}
				if last = w.r.full(f.data, f.addr); last == nil {
					last = fmt.Errorf("%w: it changed in %d looks", ErrTorn, rounds)
				}
				continue
			}
		}
		if last = err; err != nil {
			continue
		}
		if !there {
			return true
		}
		if w.left -= len(rec.Text); w.left < 0 {
			w.cov.Add("kernel log", d.addr, fmt.Errorf("%w: %d bytes of text", ErrLimit, maxLogText))
			return false
		}
		w.add(rec)
		return true
	}
	w.cov.Add("record of the kernel log", d.addr, last)
	return true
}

// read decodes one record. there is false when the descriptor holds none that
// readers in the guest would see.
func (w *logWalk) read(id uint64, d, f object) (rec LogRecord, there bool, err error) {
	v := d.uint(w.t.state)
	state := v >> logStateBits
	if v&logIDMask != id {
		if state == logReusable || v == 0 {
			return rec, false, nil // its next user has its place but not yet written its id
		}
		return rec, false, fmt.Errorf("%w: descriptor of record %d has id %#x, not %#x", ErrTorn, f.uint(w.t.seq), v&logIDMask, id)
	}
	if state == logReserved || state == logReusable {
		return rec, false, nil
	}
	seq := f.uint(w.t.seq)
	if (seq^id)&(w.count-1) != 0 {
		return rec, false, fmt.Errorf("%w: record %d in descriptor %#x", ErrTorn, seq, id)
	}
	text, there, err := w.text(id, d.uint(w.t.begin), d.uint(w.t.next), f.uint(w.t.textLen))
	if err != nil || !there {
		return rec, false, err
	}
	rec = LogRecord{
		Seq: seq, Level: LogLevel(f.bits(w.t.level)), Facility: LogFacility(f.uint(w.t.facility)),
		SinceBoot: time.Duration(f.uint(w.t.stamp)), Text: string(text),
		Subsystem: cString(f.bytes(w.t.subsystem)), Device: cString(f.bytes(w.t.device)),
		Comm: cString(f.bytes(w.t.comm)), Continues: f.bits(w.t.flags)&logCont != 0, Open: state == logCommitted,
	}
	if w.t.caller.ok {
		rec.Caller = logCaller(uint32(f.uint(w.t.caller)))
	}
	return rec, true, nil
}

// text reads the text of the data block from logical position begin to next, of
// a record of length bytes: get_data in kernel/printk/printk_ringbuffer.c. there
// is false when its writer found no room.
func (w *logWalk) text(id, begin, next, length uint64) (text []byte, there bool, err error) {
	if begin&logDataless != 0 && next&logDataless != 0 {
		return nil, begin == logEmpty && next == logEmpty, nil
	}
	mask := w.size - 1
	off, n := begin&mask, next-begin
	switch {
	// The end of the ring is part of the lap that it ends.
	case begin < next && begin&^mask == (next-1)&^mask:
	case (begin+w.size)&^mask == next&^mask:
		off, n = 0, next&mask // a block that does not fit behind begin lies at the ring's start
	default:
		return nil, false, fmt.Errorf("%w: text from %#x to %#x", ErrTorn, begin, next)
	}
	if n < w.t.idSize || off+n > w.size {
		return nil, false, fmt.Errorf("%w: text of %d bytes at %#x", ErrTorn, n, off)
	}
	b := make([]byte, min(n, w.t.idSize+length))
	if err := w.r.full(b, logAddr(w.data, off)); err != nil {
		return nil, false, err
	}
	if got := binary.LittleEndian.Uint64(b); got != id {
		return nil, false, fmt.Errorf("%w: text of descriptor %#x is of %#x", ErrTorn, id, got)
	}
	return b[w.t.idSize:], true, nil
}
