package linux

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// logOldTable is where the facts of the log before Linux 5.10 lie: records of
// differing length, one behind the other in one buffer (struct printk_log in
// kernel/printk/printk.c).
type logOldTable struct {
	buf, bufLen, firstIdx, nextIdx, firstSeq, nextSeq hypervisor.VirtAddr
	stamp, length, textLen, dictLen, facility, caller field
	level, flags                                      bitMember
	span                                              span
	size                                              uint64 // of a record's head
}

func (l *logOldTable) facts() []fact {
	return []fact{
		{&l.stamp, 8, must, []string{"printk_log.ts_nsec"}},
		{&l.length, 2, must, []string{"printk_log.len"}},
		{&l.textLen, 2, must, []string{"printk_log.text_len"}},
		{&l.dictLen, 2, must, []string{"printk_log.dict_len"}},
		{&l.facility, 1, want, []string{"printk_log.facility"}},
		{&l.caller, 4, may, []string{"printk_log.caller_id"}}, // CONFIG_PRINTK_CALLER
	}
}

func (l *logOldTable) symbols() []symbol {
	return []symbol{
		{&l.buf, must, []string{"log_buf"}},
		{&l.bufLen, must, []string{"log_buf_len"}},
		{&l.firstIdx, must, []string{"log_first_idx"}},
		{&l.nextIdx, must, []string{"log_next_idx"}},
		{&l.firstSeq, must, []string{"log_first_seq"}},
		{&l.nextSeq, must, []string{"log_next_seq"}},
	}
}

func (l *logOldTable) finish(t types) {
	l.level, l.flags = bitMemberOf(t, "printk_log.level"), bitMemberOf(t, "printk_log.flags")
	l.span = spanOf(l.stamp, l.length, l.textLen, l.dictLen, l.facility, l.caller, l.level.at, l.flags.at)
	l.size = l.span.hi
	if n, err := t.Size("printk_log"); err == nil && n >= l.span.hi && n <= maxField {
		l.size = n
	}
}

// oldLog reads the log of a kernel before 5.10. On a live guest it is read again
// when records were thrown away meanwhile.
func (g *Guest) oldLog(ctx context.Context, t *logOldTable, rounds int, cov *introspect.Coverage, add func(LogRecord)) error {
	var records []LogRecord
	var bad error
	for range rounds {
		first, err := g.r.u64(t.firstSeq)
		if err != nil {
			return err
		}
		records, bad, err = g.oldRecords(ctx, t, first)
		if err != nil {
			return err
		}
		now, err := g.r.u64(t.firstSeq)
		if err != nil {
			return err
		}
		if bad == nil && now == first {
			break
		}
		if bad == nil {
			bad = fmt.Errorf("%w: %d records were overwritten", ErrTorn, now-first)
		}
	}
	if bad != nil {
		cov.Add("kernel log", t.buf, bad)
	}
	for _, r := range records {
		add(r)
	}
	return nil
}

// oldRecords reads the records from seq on. bad is why it ended early; err, why
// it could not begin.
func (g *Guest) oldRecords(ctx context.Context, t *logOldTable, seq uint64) (records []LogRecord, bad, err error) {
	size, err := g.r.u32(t.bufLen)
	if err != nil {
		return nil, nil, err
	}
	base, err := g.r.ptr(t.buf)
	if err == nil {
		err = g.r.check(t.buf, base, 4)
	}
	if err != nil {
		return nil, nil, err
	}
	at, err := g.r.u32(t.firstIdx)
	if err != nil {
		return nil, nil, err
	}
	end, err := g.r.u64(t.nextSeq)
	if err != nil {
		return nil, nil, err
	}
	if size > maxLogText {
		return nil, nil, fmt.Errorf("%w: %d bytes", ErrLimit, size)
	}
	buf := make([]byte, size)
	if err := g.r.full(buf, base); err != nil {
		return nil, nil, err
	}
	records, bad = t.parse(ctx, buf, uint64(at), seq, end)
	return records, bad, nil
}

// parse returns the records from first to end (not included) in the buffer, the
// first of which lies at offset at.
func (l *logOldTable) parse(ctx context.Context, buf []byte, at, first, end uint64) ([]LogRecord, error) {
	var records []LogRecord
	size := uint64(len(buf))
	read := uint64(0) // a lap of the buffer at most
	for seq := first; seq != end; seq++ {
		if seq%ctxEvery == 0 && ctx.Err() != nil {
			return records, ctx.Err()
		}
		if at+l.size > size || at+l.length.off+2 > size {
			at = 0
		}
		if l.size > size {
			return records, fmt.Errorf("%w: a buffer of %d bytes", ErrTorn, size)
		}
		o := object{data: buf[at : at+l.size]}
		if o.uint(l.length) == 0 && at != 0 { // the rest lies at the buffer's start
			at = 0
			o = object{data: buf[:l.size]}
		}
		n, text, dict := o.uint(l.length), o.uint(l.textLen), o.uint(l.dictLen)
		if n < l.size || n > size-at || text+dict > n-l.size {
			return records, fmt.Errorf("%w: record %d of %d bytes has a text of %d and a dictionary of %d", ErrTorn, seq, n, text, dict)
		}
		if read += n; read > size {
			return records, fmt.Errorf("%w: more records than the buffer holds", ErrTorn)
		}
		body := buf[at+l.size : at+n]
		r := LogRecord{
			Seq: seq, Level: LogLevel(o.bits(l.level)), Facility: LogFacility(o.uint(l.facility)),
			SinceBoot: time.Duration(o.uint(l.stamp)), Text: string(body[:text]), Continues: o.bits(l.flags)&logCont != 0,
		}
		if l.caller.ok {
			r.Caller = logCaller(uint32(o.uint(l.caller)))
		}
		for word := range strings.SplitSeq(string(body[text:text+dict]), "\x00") {
			switch key, value, _ := strings.Cut(word, "="); key {
			case "SUBSYSTEM":
				r.Subsystem = value
			case "DEVICE":
				r.Device = value
			}
		}
		records = append(records, r)
		at += n
	}
	return records, nil
}
