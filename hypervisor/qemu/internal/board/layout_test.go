package board

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/cmdline"
)

const (
	miB = 1 << 20
	giB = 1 << 30
)

// Each row was seen in `info mtree -f` of QEMU 7.2.22.
func TestLayout(t *testing.T) {
	for _, tt := range []struct {
		args       string
		low, above uint64
		start      uint64
	}{
		{"-machine pc -m 512M", 512 * miB, 0, 0},
		{"-machine pc -m 3500M", 3500 * miB, 0, 0},
		{"-machine pc -m 3584M", 3 * giB, 512 * miB, 4 * giB},
		{"-machine pc -m 6G", 3 * giB, 3 * giB, 4 * giB},
		{"-machine pc-i440fx-1.7 -m 4G", 0xe0000000, 512 * miB, 4 * giB},
		{"-machine pc,max-ram-below-4g=2G -m 4G", 2 * giB, 2 * giB, 4 * giB},
		{"-machine q35 -m 2815M", 2815 * miB, 0, 0},
		{"-machine q35 -m 2816M", 2 * giB, 768 * miB, 4 * giB},
		{"-machine q35 -m 6G", 2 * giB, 4 * giB, 4 * giB},
		{"-machine q35,max-ram-below-4g=1G -m 4G", 1 * giB, 3 * giB, 4 * giB},
		{"-machine microvm -m 4G", 3 * giB, 1 * giB, 4 * giB},
		// Near 1 TiB AMD's HyperTransport range is left free, up to a point.
		{"-machine q35 -cpu EPYC,phys-bits=48 -m 1008G", 2 * giB, 1006 * giB, 1 << 40},
		{"-machine q35 -cpu Skylake-Server,phys-bits=48 -m 1008G", 2 * giB, 1006 * giB, 4 * giB},
		{"-machine q35 -m 900G", 2 * giB, 898 * giB, 4 * giB},
		{"-machine pc-q35-7.0 -cpu EPYC -m 1008G", 2 * giB, 1006 * giB, 4 * giB},
	} {
		segs, err := Layout(cmdline.Parse(strings.Fields(tt.args), nil), false, "")
		want := []Segment{{Size: tt.low}}
		if tt.above > 0 {
			want = append(want, Segment{Start: hypervisor.PhysAddr(tt.start), Size: tt.above, Offset: tt.low})
		}
		if fmt.Sprint(segs) != fmt.Sprint(want) || err != nil {
			t.Errorf("%s: %v, %v; want %v", tt.args, segs, err, want)
		}
	}
}

func TestLayoutNotKnown(t *testing.T) {
	for _, args := range []string{
		"-machine xenfv -m 1G", "-machine virt -m 1G",
		"-machine q35 -cpu SomeNewModel -m 1010G", // either layout
		"-machine pc-q35-focal -cpu EPYC -m 1010G",
	} {
		_, err := Layout(cmdline.Parse(strings.Fields(args), nil), false, "")
		var no *hypervisor.NotSupportedError
		if !errors.As(err, &no) || no.Remedy == "" {
			t.Errorf("%s: %v", args, err)
		}
	}
	if _, err := Layout(cmdline.Parse([]string{"-m", "8000000T"}, nil), false, ""); err == nil {
		t.Error("an absurd size is taken")
	}
}

func TestVendor(t *testing.T) {
	for _, tt := range []struct {
		cpu  string
		kvm  bool
		want string
	}{
		{"", false, "AuthenticAMD"}, {"EPYC-Milan", false, "AuthenticAMD"}, {"Haswell-noTSX,+x", false, "GenuineIntel"},
		{"EPYC", true, "GenuineIntel"}, {"host", true, "GenuineIntel"}, {"EPYC,vendor=GenuineIntel", false, "GenuineIntel"}, {"new", false, ""},
	} {
		if got := vendor(tt.cpu, tt.kvm, "GenuineIntel"); got != tt.want {
			t.Errorf("vendor(%q, %v) = %q, want %q", tt.cpu, tt.kvm, got, tt.want)
		}
	}
}
