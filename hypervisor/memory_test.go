package hypervisor

import (
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
)

func TestNormalizeRanges(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []Range
		want []Range
		err  string
	}{
		{"none", nil, nil, ""},
		{"sorted, merged, empty ones dropped", []Range{{0x3000, 0x1000}, {0, 0x1000}, {0x500, 0}, {0x1000, 0x1000}}, []Range{{0, 0x2000}, {0x3000, 0x1000}}, ""},
		{"up to the last byte but one", []Range{{math.MaxUint64 - 4095, 4095}}, []Range{{math.MaxUint64 - 4095, 4095}}, ""},
		{"overlap", []Range{{0, 0x1001}, {0x1000, 1}}, nil, "overlap"},
		{"one in another", []Range{{0x10, 0x10}, {0, 0x100}}, nil, "overlap"},
		{"wraps", []Range{{math.MaxUint64, 2}}, nil, "wraps around"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := slices.Clone(c.in)
			got, err := NormalizeRanges(c.in)
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Fatalf("error %v, want %q", err, c.err)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%v, want %v", got, c.want)
			}
			if !slices.Equal(c.in, before) {
				t.Errorf("the caller's slice was changed: %v", c.in)
			}
		})
	}
}

func TestFindRange(t *testing.T) {
	rs := []Range{{0, 0xa0000}, {0x100000, 0x1000}, {1 << 32, 1}}
	for gpa, want := range map[PhysAddr]int{0: 0, 0x9ffff: 0, 0xa0000: -1, 0xfffff: -1, 0x100000: 1, 0x101000: -1, 1 << 32: 2, 1<<32 + 1: -1, math.MaxUint64: -1} {
		r, ok := FindRange(rs, gpa)
		if ok != (want >= 0) || ok && r != rs[want] {
			t.Errorf("FindRange(%v) = %v, %v", gpa, r, ok)
		}
	}
	if _, ok := FindRange(nil, 0); ok {
		t.Error("found in nothing")
	}
	if n := TotalSize(rs); n != 0xa1001 {
		t.Errorf("TotalSize = %#x", n)
	}
}

// short is memory that reads less than it was asked for and does not say why.
type short struct{ Memory }

func (short) ReadPhys(p []byte, _ PhysAddr) (int, error) { return len(p) / 2, nil }

func TestReadFullOfAPart(t *testing.T) {
	err := ReadFull(short{}, make([]byte, 8), 0x1000)
	var at *AddressError
	if !errors.Is(err, ErrUnreadable) || !errors.As(err, &at) || at.Addr != 0x1004 {
		t.Errorf("ReadFull = %v", err)
	}
}

// Addresses are written so that no reader of JSON rounds them.
func TestAddressesInJSON(t *testing.T) {
	type both struct {
		P PhysAddr
		V VirtAddr
	}
	in := both{1<<52 + 1, 0xffff_8880_0000_0001}
	b, err := json.Marshal(in)
	if err != nil || string(b) != `{"P":"0x10000000000001","V":"0xffff888000000001"}` {
		t.Fatalf("%s, %v", b, err)
	}
	var out both
	if err := json.Unmarshal(b, &out); err != nil || out != in {
		t.Errorf("%+v, %v", out, err)
	}
	for _, bad := range []string{`{"P":"x"}`, `{"V":"0x1ffffffffffffffff"}`, `{"P":""}`} {
		if err := json.Unmarshal([]byte(bad), &out); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
	if a := PhysAddr(0x12345); a.Frame() != 0x12 || a.Offset() != 0x345 || Frame(0x12).Addr() != 0x12000 {
		t.Error("frame and offset")
	}
}

// deaf is a VM that can do nothing.
type deaf struct{ VM }

func (deaf) Info() Info { return Info{Driver: "deaf"} }

func TestMissingCapabilityNamesTheRemedy(t *testing.T) {
	_, err := As[Pauser](deaf{})
	var no *NotSupportedError
	if !errors.Is(err, ErrNotSupported) || !errors.As(err, &no) || no.Driver != "deaf" || no.Remedy == "" || !strings.Contains(no.What, "Pauser") {
		t.Errorf("As = %v", err)
	}
	if IsLive(deaf{}) {
		t.Error("a VM that does not say is taken as live")
	}
}
