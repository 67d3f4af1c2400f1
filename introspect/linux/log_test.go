package linux

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
)

// logTypes are the types of a log, as members' offsets and sizes.
type logTypes struct {
	fields map[string]profile.Field
	sizes  map[string]uint64
}

func (t logTypes) Field(path string) (profile.Field, error) {
	if f, ok := t.fields[path]; ok {
		return f, nil
	}
	return profile.Field{}, fmt.Errorf("%s: %w", path, profile.ErrNoType)
}

func (t logTypes) Size(name string) (uint64, error) {
	if n, ok := t.sizes[name]; ok {
		return n, nil
	}
	return 0, fmt.Errorf("%s: %w", name, profile.ErrNoType)
}

func (t logTypes) EnumValue(enum, name string) (int64, error) {
	return 0, fmt.Errorf("%s.%s: %w", enum, name, profile.ErrNoType)
}

func newLogTypes() logTypes {
	t := logTypes{fields: map[string]profile.Field{}, sizes: map[string]uint64{
		"prb_desc": 24, "printk_info": 88, "prb_data_block": 8, "printk_log": 16,
	}}
	for path, at := range map[string][2]uint64{
		"printk_ringbuffer.desc_ring.count_bits": {0, 4}, "printk_ringbuffer.desc_ring.descs": {8, 8},
		"printk_ringbuffer.desc_ring.infos": {16, 8}, "printk_ringbuffer.desc_ring.head_id": {24, 8},
		"printk_ringbuffer.desc_ring.tail_id": {32, 8}, "printk_ringbuffer.text_data_ring.size_bits": {40, 4},
		"printk_ringbuffer.text_data_ring.data": {48, 8},
		"prb_desc.state_var":                    {0, 8}, "prb_desc.text_blk_lpos.begin": {8, 8}, "prb_desc.text_blk_lpos.next": {16, 8},
		"printk_info.seq": {0, 8}, "printk_info.ts_nsec": {8, 8}, "printk_info.text_len": {16, 2}, "printk_info.facility": {18, 1},
		"printk_info.caller_id": {20, 4}, "printk_info.dev_info.subsystem": {24, 16}, "printk_info.dev_info.device": {40, 48},
		"printk_log.ts_nsec": {0, 8}, "printk_log.len": {8, 2}, "printk_log.text_len": {10, 2}, "printk_log.dict_len": {12, 2},
		"printk_log.facility": {14, 1},
	} {
		t.fields[path] = profile.Field{Offset: at[0], Size: at[1]}
	}
	for name, off := range map[string]uint64{"printk_info": 19, "printk_log": 15} {
		t.fields[name+".flags"] = profile.Field{Offset: off, Size: 1, BitSize: 5}
		t.fields[name+".level"] = profile.Field{Offset: off, Size: 1, BitOffset: 5, BitSize: 3}
	}
	return t
}

func newLogTable(t testing.TB) *logTable {
	t.Helper()
	l := &logTable{prb: fakeBase}
	types := newLogTypes()
	if lost, _, problems := lookUpFacts(types, l.facts()); len(lost)+len(problems) > 0 {
		t.Fatal(lost, problems)
	}
	l.finish(types)
	return l
}

// Where things lie in a made ring: a pointer to it, the ring, 4 descriptors, 4
// infos and 256 bytes of text.
const (
	madeRing  = 64
	madeDescs = 128
	madeInfos = 256
	madeText  = 640
	madeSize  = madeText + 256
)

// madeLog is the memory of a ring whose records have ids 6 to 9: one whose text
// wraps, one without text, one that got no room, and one that is still open.
func madeLog() rawMemory {
	m := make(rawMemory, madeSize)
	put := func(at int, v uint64) { binary.LittleEndian.PutUint64(m[at:], v) }
	base := uint64(fakeBase)
	put(0, base+madeRing)
	put(madeRing, 2) // count_bits
	put(madeRing+8, base+madeDescs)
	put(madeRing+16, base+madeInfos)
	put(madeRing+24, 9|logReusable<<logStateBits) // the top bits are the state's
	put(madeRing+32, 6)
	put(madeRing+40, 8) // size_bits
	put(madeRing+48, base+madeText)
	record := func(id, state, begin, next, at uint64, text, subsystem, device string) {
		d, i := madeDescs+int(id&3)*24, madeInfos+int(id&3)*88
		put(d, id|state<<logStateBits)
		put(d+8, begin)
		put(d+16, next)
		put(i, id+100) // seq: of the same place
		put(i+8, id*1e9)
		binary.LittleEndian.PutUint16(m[i+16:], uint16(len(text)))
		m[i+18] = 3
		m[i+19] = 4<<5 | logCont
		binary.LittleEndian.PutUint32(m[i+20:], logCallerCPU|7)
		copy(m[i+24:], subsystem)
		copy(m[i+40:], device)
		if begin&logDataless == 0 {
			put(madeText+int(at), id)
			copy(m[madeText+int(at)+8:], text)
		}
	}
	record(6, 2, 0x1f8, 0x220, 0, "wraps, from the start", "pci", "+pci:0000:00:01.1")
	record(7, 2, logEmpty, logEmpty, 0, "", "", "")
	record(8, 2, 1, 1, 0, "no room", "", "")
	record(9, logCommitted, 0x220, 0x230, 0x20, "open", "", "")
	return m
}

func readMadeLog(t testing.TB, m rawMemory, live bool) ([]LogRecord, *introspect.Coverage, error) {
	cov := &introspect.Coverage{}
	var out []LogRecord
	w := logWalk{
		ctx: t.Context(), r: &reader{virtReader: m, lowest: kernelHalf4Level}, t: newLogTable(t), live: live,
		left: maxLogText, cov: cov, add: func(r LogRecord) { out = append(out, r) },
	}
	err := w.ring(fakeBase)
	return out, cov, err
}

func TestLogRing(t *testing.T) {
	for _, live := range []bool{false, true} {
		got, cov, err := readMadeLog(t, madeLog(), live)
		if err != nil || !cov.Complete() {
			t.Fatal(err, cov.Problems())
		}
		want := []LogRecord{
			{Seq: 106, Level: 4, Facility: 3, SinceBoot: 6 * time.Second, Text: "wraps, from the start", Caller: "C7", Subsystem: "pci", Device: "+pci:0000:00:01.1", Continues: true},
			{Seq: 107, Level: 4, Facility: 3, SinceBoot: 7 * time.Second, Caller: "C7", Continues: true},
			{Seq: 109, Level: 4, Facility: 3, SinceBoot: 9 * time.Second, Text: "open", Caller: "C7", Continues: true, Open: true},
		}
		if !slices.Equal(got, want) {
			t.Errorf("live %v:\n%+v\nwant\n%+v", live, got, want)
		}
	}
	b, err := json.Marshal(LogRecord{Seq: 1, Level: 3, Facility: 16, Text: "a\xff"})
	if err != nil || !strings.Contains(string(b), `"level":"err","facility":"local0"`) || !strings.Contains(string(b), `"text":"a\\xff"`) {
		t.Errorf("%s, %v", b, err)
	}
}

// What contradicts itself is told, and the rest is read.
func TestLogRingThatLies(t *testing.T) {
	put := func(at int, v uint64) func(rawMemory) {
		return func(m rawMemory) { binary.LittleEndian.PutUint64(m[at:], v) }
	}
	for name, c := range map[string]struct {
		lie     func(rawMemory)
		records int
		fails   bool
	}{
		"another id":     {put(madeDescs+2*24, 22|2<<logStateBits), 2, false},
		"another seq":    {put(madeInfos+2*88, 5), 2, false},
		"another text":   {put(madeText, 77), 2, false},
		"a long text":    {put(madeDescs+2*24+16, 0x1f8+0x400), 2, false},
		"a text of none": {put(madeDescs+2*24+16, 0x200), 2, false},
		"many records":   {put(madeRing+32, 1<<40), 3, false},
		"no memory":      {put(madeRing+16, uint64(fakeBase)+1<<30), 0, false},
		"a wild pointer": {put(madeRing+48, 0x1000), 0, true},
		"a huge ring":    {put(madeRing, 63), 0, true},
	} {
		m := madeLog()
		c.lie(m)
		got, cov, err := readMadeLog(t, m, false)
		if len(got) != c.records || (err != nil) != c.fails || err == nil && cov.Complete() {
			t.Errorf("%s: %d records, %v, %v", name, len(got), cov.Problems(), err)
		}
	}
}

func FuzzLogRing(f *testing.F) {
	f.Add([]byte{})
	f.Add(patch(nil, fakeBase+madeRing, 4))
	f.Add(patch(nil, fakeBase+madeDescs+8, ^uint64(1)))
	f.Add(patch(patch(nil, fakeBase+madeRing+40, 31), fakeBase+madeDescs+64, 1<<33))
	f.Fuzz(func(t *testing.T, lies []byte) {
		m := madeLog()
		for len(lies) >= 12 {
			at := binary.LittleEndian.Uint32(lies) % (madeSize - 8)
			binary.LittleEndian.PutUint64(m[at:], binary.LittleEndian.Uint64(lies[4:]))
			lies = lies[12:]
		}
		for _, live := range []bool{false, true} {
			records, cov, err := readMadeLog(t, m, live)
			if err != nil && !errors.Is(err, ErrTorn) && !errors.Is(err, ErrWild) && !errors.Is(err, hypervisor.ErrUnreadable) {
				t.Error(err)
			}
			if len(records) > maxLogRecords || cov == nil {
				t.Errorf("%d records", len(records))
			}
		}
	})
}

// oldTable is where the facts of records before Linux 5.10 lie.
func oldTable() *logOldTable {
	l := &logOldTable{}
	lookUpFacts(newLogTypes(), l.facts())
	l.finish(newLogTypes())
	return l
}

func oldRecord(buf []byte, stamp uint64, text, dict string) []byte {
	head := make([]byte, 16)
	n := (16 + len(text) + len(dict) + 3) &^ 3
	binary.LittleEndian.PutUint64(head, stamp)
	binary.LittleEndian.PutUint16(head[8:], uint16(n))
	binary.LittleEndian.PutUint16(head[10:], uint16(len(text)))
	binary.LittleEndian.PutUint16(head[12:], uint16(len(dict)))
	head[14], head[15] = 1, 6<<5
	at := len(buf)
	buf = append(append(append(buf, head...), text...), dict...)
	return append(buf, make([]byte, at+n-len(buf))...)
}

func TestOldLog(t *testing.T) {
	// The log begins with its second record and goes on at the buffer's start.
	buf := oldRecord(nil, 9e9, "newest", "")
	first := uint64(len(buf))
	buf = oldRecord(buf, 7e9, "oldest", "SUBSYSTEM=pci\x00DEVICE=+pci:1")
	buf = oldRecord(buf, 8e9, "two\nlines", "")
	buf = append(buf, make([]byte, 16)...) // a length of 0: the rest is at the start
	got, err := oldTable().parse(t.Context(), buf, first, 100, 103)
	want := []LogRecord{
		{Seq: 100, Level: 6, Facility: 1, SinceBoot: 7 * time.Second, Text: "oldest", Subsystem: "pci", Device: "+pci:1"},
		{Seq: 101, Level: 6, Facility: 1, SinceBoot: 8 * time.Second, Text: "two\nlines"},
		{Seq: 102, Level: 6, Facility: 1, SinceBoot: 9 * time.Second, Text: "newest"},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := oldTable().parse(t.Context(), buf, first, 100, 104); !errors.Is(err, ErrTorn) || len(got) != 3 {
		t.Errorf("a lap and more: %d records, %v", len(got), err)
	}
}

func FuzzOldLog(f *testing.F) {
	buf := oldRecord(oldRecord(nil, 1, "first", ""), 2, "second", "DEVICE=x")
	f.Add(buf, uint64(0), uint64(0), uint64(2))
	f.Add(buf[:20], uint64(20), uint64(5), uint64(4))
	f.Add(make([]byte, 64), uint64(8), uint64(0), uint64(1<<40))
	table := oldTable()
	f.Fuzz(func(t *testing.T, buf []byte, at, first, end uint64) {
		records, err := table.parse(t.Context(), buf, at, first, end)
		if uint64(len(records)) != end-first && err == nil || len(records)*16 > len(buf) {
			t.Errorf("%d records of %d to %d in %d bytes: %v", len(records), first, end, len(buf), err)
		}
	})
}
