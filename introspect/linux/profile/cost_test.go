package profile

import (
	"encoding/binary"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// withinSeconds fails the test when f takes longer than seconds: what a guest
// writes must not cost more than that.
func withinSeconds(t *testing.T, seconds int, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(time.Duration(seconds) * time.Second):
		t.Fatalf("still at work after %d s", seconds)
	}
}

// Markers that end everywhere: each end is a place to look for names before.
func TestMarkersEverywhere(t *testing.T) {
	b := make([]byte, 12<<20)
	for i := 0; i+16 <= len(b); i += 16 {
		for k, v := range []uint32{0, 30000, 60000, 90000} {
			binary.LittleEndian.PutUint32(b[i+4*k:], v)
		}
	}
	withinSeconds(t, 10, func() {
		if l, err := locateNames(b, tokenTable{table: len(b), index: len(b)}); err == nil {
			t.Errorf("found names: %+v", l)
		}
	})
}

// As many structs of one name as fit, each of which leads through an anonymous
// member to a large one without the member that is looked for.
func TestManyTypesOfOneName(t *testing.T) {
	w := &btfWriter{}
	u32 := w.add("unsigned int", btfInt, 0, false, 4, 32)
	other := w.name("other")
	const members = 50_000
	var many, enums []uint32
	for range members {
		many = append(many, other, u32, 0)
		enums = append(enums, other, 0)
	}
	big := w.add("", btfStruct, members, false, 4, many...)
	en := w.add("", btfEnum, members, false, 4, enums...)
	name, enName := w.name("task_struct"), w.name("pid_type")
	const count = 300_000
	for range count {
		for _, v := range []uint32{name, btfStruct<<24 | 1, 4, 0, big, 0} {
			w.types = binary.LittleEndian.AppendUint32(w.types, v)
		}
		for _, v := range []uint32{enName, btfTypedef << 24, en} {
			w.types = binary.LittleEndian.AppendUint32(w.types, v)
		}
	}
	types := mustTypes(t, w.blob())
	withinSeconds(t, 10, func() {
		if _, err := types.Field("task_struct.comm"); err == nil {
			t.Error("found a member that is not there")
		}
		if _, err := types.EnumValue("pid_type", "PIDTYPE_TGID"); err == nil {
			t.Error("found an enumerator that is not there")
		}
		if _, err := types.EnumValue("", "PIDTYPE_TGID"); err == nil {
			t.Error("found an enumerator that is not there")
		}
	})
}

// lostMemory is memory whose views fault from some page on: the file behind
// them was truncated.
type lostMemory struct {
	*fileMemory
	view []byte
}

func (m *lostMemory) MapPhys(gpa hypervisor.PhysAddr, limit uint64) ([]byte, error) {
	v := m.view[gpa:]
	return v[:min(limit, uint64(len(v)))], nil
}

func (m *lostMemory) ReadPhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	return hypervisor.CopyView(p, m.view[gpa:])
}

// A file that is truncated while it is searched ends no program.
func TestTruncatedWhileSearched(t *testing.T) {
	for name, keep := range map[string]int64{
		"all": 0, "before the image": synthPhys, "in rodata": synthPhys + synthTables + 0x1000, "in BTF": synthPhys + synthBTF,
	} {
		for _, o := range []synth{{}, {textOnly: true}} {
			t.Run(name, func(t *testing.T) {
				g := o.build()
				f, err := os.Create(t.TempDir() + "/ram")
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if _, err := f.Write(g.ram); err != nil {
					t.Fatal(err)
				}
				view, err := unix.Mmap(int(f.Fd()), 0, len(g.ram), unix.PROT_READ, unix.MAP_SHARED)
				if err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := unix.Munmap(view); err != nil {
						t.Error(err)
					}
				}()
				mem := &lostMemory{g.memory(), view}
				im, err := readImage(mem, synthPhys+synthLevel3)
				if err != nil {
					t.Fatal(err)
				}
				if err := f.Truncate(keep); err != nil {
					t.Fatal(err)
				}
				if _, err := findSymbols(t.Context(), im); err == nil && name == "all" {
					t.Error("symbols found in what is lost")
				}
				if _, err := searchBanner(im); err == nil && name == "all" {
					t.Error("banner found in what is lost")
				}
				if _, err := findBTF(im, &Symbols{}); err == nil {
					t.Error("BTF found in what is lost")
				}
				if k, err := Find(t.Context(), mem, registersOf(g), Options{}); err == nil {
					t.Errorf("found %+v", k)
				}
			})
		}
	}
}
