package wire

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// What is parsed is written again as the same bytes: nothing was made up, and
// nothing has two forms.

func FuzzMessage(f *testing.F) {
	for _, m := range []Message{
		{Kind: KindHello, Body: []byte(`{"oldest":1}`)},
		{Kind: KindRequest, Method: MethodWrite, ID: 3, Body: AppendWrite(nil, 0x1000, []byte{1, 2})},
		{Kind: KindGoodbye},
	} {
		b, err := m.Append(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, headerSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, files, err := Parse(b)
		if err != nil {
			return
		}
		again, err := m.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		again[6] = byte(files)
		if !bytes.Equal(b, again) {
			t.Errorf("%x became %x", b, again)
		}
		_ = m.Method.String()
		var e *Error
		if m.Into(&e) == nil && e != nil {
			_ = e.Err().Error()
		}
	})
}

func FuzzEvent(f *testing.F) {
	ev := hypervisor.TrapEvent{
		Kind: hypervisor.TrapPage, Access: hypervisor.AccessWrite, Old: []byte{1}, New: []byte{2}, Size: 1,
		Registers: hypervisor.Registers{Valid: everyGroup, RIP: 0xffff_ffff_8100_0000},
	}
	f.Add(AppendEvent(nil, 1, &ev))
	f.Add(AppendEvent(nil, 1, &hypervisor.TrapEvent{Kind: hypervisor.TrapMSR}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var ev, back hypervisor.TrapEvent
		n, err := ParseEvent(b, &ev)
		if err != nil {
			return
		}
		// Unknown bits of flags and bytes behind maxAccess do not come back.
		if n2, err := ParseEvent(AppendEvent(nil, n, &ev), &back); err != nil || n2 != n {
			t.Fatalf("%d, %v", n2, err)
		}
		if len(ev.Old) <= maxAccess && len(ev.New) <= maxAccess && !reflect.DeepEqual(ev, back) {
			t.Errorf("%+v became %+v", ev, back)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add(AppendAnswer(nil, 1, &hypervisor.TrapAnswer{}))
	f.Add(AppendAnswer(nil, 2, &hypervisor.TrapAnswer{Verb: hypervisor.TrapEmulate, Value: []byte{1, 2, 3, 4}, Registers: &hypervisor.Registers{Valid: everyGroup}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, a, err := ParseAnswer(b)
		if err != nil || len(a.Value) > maxAccess {
			return
		}
		if again := AppendAnswer(nil, n, &a); !bytes.Equal(b, again) {
			t.Errorf("%x became %x", b, again)
		}
	})
}

func FuzzBodies(f *testing.F) {
	f.Add(AppendRegisters(nil, &hypervisor.Registers{Valid: everyGroup}))
	f.Add(AppendRanges(nil, []hypervisor.Range{{Start: 4096, Size: 4096}}))
	f.Add(AppendWrite(nil, 0x1000, []byte{1}))
	welcome, err := json.Marshal(Welcome{Protocol: Protocol, Ranges: []hypervisor.Range{{Size: 4096}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(welcome)
	f.Fuzz(func(t *testing.T, b []byte) {
		if regs, err := ParseRegisters(b); err == nil {
			var again []byte
			for i := range regs {
				again = AppendRegisters(again, &regs[i])
			}
			if !bytes.Equal(b, again) {
				t.Errorf("registers %x became %x", b, again)
			}
		}
		if rs, err := ParseRanges(nil, b); err == nil && !bytes.Equal(b, AppendRanges(nil, rs)) {
			t.Errorf("ranges %x changed", b)
		}
		if gpa, p, err := ParseWrite(b); err == nil && !bytes.Equal(b, AppendWrite(nil, gpa, p)) {
			t.Errorf("write %x changed", b)
		}
		m := Message{Body: b}
		for _, v := range []any{new(Hello), new(Welcome), new(Token), new(SetTrap), new(Balloon), new(Save), new(Want), new(Give), new(Event)} {
			_ = m.Into(v)
		}
	})
}
