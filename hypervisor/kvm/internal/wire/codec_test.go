package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"reflect"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// fill sets every field that v has to something that is not its zero value, so
// that a field that is added to a type and forgotten here is seen.
func fill(t testing.TB, rng *rand.Rand, v reflect.Value) {
	t.Helper()
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, rng, v.Field(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, rng, v.Elem())
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int:
		v.SetInt(int64(rng.Int32()) + 1)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		for v.IsZero() {
			v.SetUint(rng.Uint64() & (1<<v.Type().Bits() - 1))
		}
	case reflect.Slice:
		b := make([]byte, 1+rng.IntN(64))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		v.SetBytes(b)
	case reflect.String:
		switch v.Type() {
		case reflect.TypeFor[hypervisor.TrapKind]():
			all := kinds()
			v.SetString(string(all[rng.IntN(len(all))]))
		case reflect.TypeFor[hypervisor.TrapVerb]():
			all := verbs()
			v.SetString(string(all[1+rng.IntN(len(all)-1)]))
		case reflect.TypeFor[hypervisor.Mechanism]():
			all := mechanisms()
			v.SetString(string(all[1+rng.IntN(len(all)-1)]))
		default:
			t.Fatalf("no value for %v", v.Type())
		}
	default:
		t.Fatalf("no value for %v", v.Type())
	}
}

const everyGroup = hypervisor.GroupGeneral | hypervisor.GroupSegments | hypervisor.GroupControl | hypervisor.GroupMSR

func TestTrapsSurvive(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var ev, back hypervisor.TrapEvent
		fill(t, rng, reflect.ValueOf(&ev).Elem())
		ev.Registers.Valid = everyGroup
		b := AppendEvent(nil, 7, &ev)
		if len(b) > MaxTrap {
			t.Fatalf("an event of %d bytes", len(b))
		}
		n, err := ParseEvent(b, &back)
		if n != 7 || err != nil || !reflect.DeepEqual(ev, back) {
			t.Fatalf("event %d, %v:\n%+v\nwant\n%+v", n, err, back, ev)
		}
		var a hypervisor.TrapAnswer
		fill(t, rng, reflect.ValueOf(&a).Elem())
		a.Registers.Valid = everyGroup
		n, aback, err := ParseAnswer(AppendAnswer(nil, 9, &a))
		if n != 9 || err != nil || !reflect.DeepEqual(a, aback) {
			t.Fatalf("answer %d, %v:\n%+v\nwant\n%+v", n, err, aback, a)
		}
	}
	// What is not there stays not there.
	ev := hypervisor.TrapEvent{Kind: hypervisor.TrapShutdown, VCPU: -1}
	var back hypervisor.TrapEvent
	if _, err := ParseEvent(AppendEvent(nil, 1, &ev), &back); err != nil || !reflect.DeepEqual(ev, back) {
		t.Errorf("%+v, %v", back, err)
	}
	if _, a, err := ParseAnswer(AppendAnswer(nil, 1, &hypervisor.TrapAnswer{})); err != nil || !reflect.DeepEqual(a, hypervisor.TrapAnswer{}) {
		t.Errorf("%+v, %v", a, err)
	}
	// The largest there can be fits.
	huge := make([]byte, 2*maxAccess)
	ev.Old, ev.New, ev.Registers.Valid = huge, huge, everyGroup
	if n := len(AppendEvent(nil, 1, &ev)); n > MaxTrap {
		t.Errorf("an event of %d bytes", n)
	}
}

func TestRegistersSurvive(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var all []hypervisor.Registers
	var b []byte
	for i := range 64 {
		var r hypervisor.Registers
		fill(t, rng, reflect.ValueOf(&r).Elem())
		r.VCPU, r.Valid = i, everyGroup
		all = append(all, r)
		b = AppendRegisters(b, &r)
	}
	if len(b) > MaxBody {
		t.Errorf("the registers of %d vCPUs take %d bytes", len(all), len(b))
	}
	if back, err := ParseRegisters(b); err != nil || !reflect.DeepEqual(all, back) {
		t.Errorf("%v", err)
	}
	// Groups that are not valid do not cross.
	r := all[0]
	r.Valid = hypervisor.GroupControl
	want := hypervisor.Registers{VCPU: r.VCPU, Valid: r.Valid, CR0: r.CR0, CR2: r.CR2, CR3: r.CR3, CR4: r.CR4, EFER: r.EFER}
	if back, err := ParseRegisters(AppendRegisters(nil, &r)); err != nil || !reflect.DeepEqual(back, []hypervisor.Registers{want}) {
		t.Errorf("%+v, %v", back, err)
	}
}

func TestValuesSurvive(t *testing.T) {
	rs := []hypervisor.Range{{Start: 0, Size: 1}, {Start: 1 << 52, Size: 1 << 63}}
	if back, err := ParseRanges(nil, AppendRanges(nil, rs)); err != nil || !reflect.DeepEqual(rs, back) {
		t.Errorf("%v, %v", back, err)
	}
	gpa, p, err := ParseWrite(AppendWrite(nil, 0x1234, []byte("data")))
	if gpa != 0x1234 || string(p) != "data" || err != nil {
		t.Errorf("%v %q %v", gpa, p, err)
	}
	m := Message{Kind: KindRequest, Method: MethodSave, ID: 1<<63 + 5}.JSON(Save{Parent: true})
	b, err := m.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	back, files, err := Parse(b)
	if err != nil || files != 0 || !reflect.DeepEqual(m, back) {
		t.Errorf("%+v, %d, %v", back, files, err)
	}
	if _, err := (Message{Body: make([]byte, MaxBody+1)}).Append(nil); err == nil {
		t.Error("a body that is too long was taken")
	}
	for m := Method(1); m < methodEnd; m++ {
		if m.String() == "" || m.String() == fmt.Sprintf("method %d", m) {
			t.Errorf("method %d has no name", m)
		}
	}
}

// What a caller branches on, and the text, are the same on both sides.
func TestErrorsSurvive(t *testing.T) {
	for _, err := range []error{
		nil,
		errors.New("plain"),
		fmt.Errorf("pause: %w", hypervisor.ErrGone),
		fmt.Errorf("wait: %w", context.DeadlineExceeded),
		&hypervisor.AddressError{Op: "write", Addr: 0xfee00000, Err: hypervisor.ErrNotRAM},
		fmt.Errorf("x: %w", &hypervisor.NotSupportedError{What: "balloon", Driver: "kvm", Remedy: "run with --balloon"}),
		&hypervisor.TrapError{Trap: hypervisor.Trap{Kind: hypervisor.TrapHardware, Virt: 0x1000, Size: 8}, Err: hypervisor.ErrNoResources},
		&hypervisor.TrapError{Trap: hypervisor.Trap{Kind: hypervisor.TrapPage}, Err: &hypervisor.AddressError{Op: "trap", Addr: 1 << 40, Err: hypervisor.ErrNotRAM}},
		&os.PathError{Op: "open", Path: "/x", Err: fs.ErrExist},
	} {
		b, jerr := json.Marshal(FromError(err))
		if jerr != nil {
			t.Fatal(jerr)
		}
		var e *Error
		if jerr := json.Unmarshal(b, &e); jerr != nil {
			t.Fatal(jerr)
		}
		back := e.Err()
		if err == nil {
			if back != nil {
				t.Errorf("no error became %v", back)
			}
			continue
		}
		if back.Error() != err.Error() {
			t.Errorf("%q became %q", err, back)
		}
		for _, s := range []error{
			hypervisor.ErrGone, hypervisor.ErrNotRAM, hypervisor.ErrNotSupported, hypervisor.ErrNoResources,
			hypervisor.ErrBusy, context.DeadlineExceeded, fs.ErrExist, fs.ErrNotExist,
		} {
			if errors.Is(err, s) != errors.Is(back, s) {
				t.Errorf("%q: Is(%q) is %v", err, s, errors.Is(back, s))
			}
		}
		checkSame[*hypervisor.AddressError](t, err, back)
		checkSame[*hypervisor.NotSupportedError](t, err, back)
		checkSame[*hypervisor.TrapError](t, err, back)
	}
	long := FromError(errors.New(string(bytes.Repeat([]byte("é"), maxText))))
	if len(long.Text) > maxText+8 {
		t.Errorf("a text of %d bytes", len(long.Text))
	}
}

func checkSame[T error](t *testing.T, err, back error) {
	t.Helper()
	var a, b T
	if errors.As(err, &a) != errors.As(back, &b) {
		t.Errorf("%q: %T is lost", err, a)
	} else if errors.As(err, &a) && a.Error() != b.Error() {
		t.Errorf("%q became %q", a, b)
	}
}

func TestFileNames(t *testing.T) {
	for _, name := range []string{"memory", "state.json", "delta-1_2"} {
		if err := CheckFileName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", ".", "..", ".hidden", "a/b", "/etc/passwd", "a\x00b", "a\nb", string(make([]byte, 65))} {
		if CheckFileName(name) == nil {
			t.Errorf("%q was taken", name)
		}
	}
}

func BenchmarkEvent(b *testing.B) {
	rng := rand.New(rand.NewPCG(5, 6))
	var ev hypervisor.TrapEvent
	fill(b, rng, reflect.ValueOf(&ev).Elem())
	ev.Registers.Valid = everyGroup
	b.Run("binary", func(b *testing.B) {
		var buf []byte
		var back hypervisor.TrapEvent
		for b.Loop() {
			buf = AppendEvent(buf[:0], 1, &ev)
			if _, err := ParseEvent(buf, &back); err != nil {
				b.Fatal(err)
			}
		}
		b.SetBytes(int64(len(buf)))
	})
	b.Run("JSON", func(b *testing.B) {
		var back hypervisor.TrapEvent
		for b.Loop() {
			buf, err := json.Marshal(&ev)
			if err == nil {
				err = json.Unmarshal(buf, &back)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}
