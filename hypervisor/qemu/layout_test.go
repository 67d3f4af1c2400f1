package qemu_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/qemu"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// mark has QEMU's loader write a value at gpa before the machine's first
// instruction.
func mark(gpa hypervisor.PhysAddr) (arg string, value uint64) {
	value = uint64(gpa) ^ 0x5a5a_a5a5_0f0f_f0f0
	return fmt.Sprintf("loader,addr=%#x,data=%#x,data-len=8", uint64(gpa), value), value
}

func checkMarks(t *testing.T, vm hypervisor.Memory, at ...hypervisor.PhysAddr) {
	t.Helper()
	for _, gpa := range at {
		var p [8]byte
		if err := hypervisor.ReadFull(vm, p[:], gpa); err != nil {
			t.Error(err)
			continue
		}
		_, want := mark(gpa)
		if got := binary.LittleEndian.Uint64(p[:]); got != want {
			t.Errorf("%v holds %#x, want %#x", gpa, got, want)
		}
	}
}

func marked(args []string, at ...hypervisor.PhysAddr) []string {
	for _, gpa := range at {
		arg, _ := mark(gpa)
		args = append(args, "-device", arg)
	}
	return args
}

// NUMA nodes lie one behind the other, whatever order the command line has. Two
// of one size are told apart by QMP, and by the firmware's marks without.
func TestNUMA(t *testing.T) {
	labtest.NeedRoot(t)
	at := []hypervisor.PhysAddr{2 << 20, 64<<20 - 8, 64 << 20, 100 << 20}
	args := marked([]string{"-m", "128",
		"-object", "memory-backend-ram,id=b,size=64M", "-object", "memory-backend-ram,id=a,size=64M",
		"-numa", "node,nodeid=1,memdev=b", "-numa", "node,nodeid=0,memdev=a"}, at...)
	m := start(t, true, args...)
	m.settle()
	for _, o := range []qemu.Options{{}, {NoQMP: true}} {
		vm := m.open(o)
		checkMarks(t, vm, at...)
		m.compare(vm, 0, 128<<20)
	}
}

// A DIMM is RAM where QMP tells of it.
func TestDIMM(t *testing.T) {
	labtest.NeedRoot(t)
	args := []string{"-m", "128M,slots=2,maxmem=1G", "-machine", "q35", "-S",
		"-object", "memory-backend-memfd,id=d,size=256M", "-device", "pc-dimm,memdev=d"}
	m := start(t, true, args...)
	vm := m.open(qemu.Options{})
	main := hypervisor.Range{Start: 0, Size: 128 << 20}
	want := []hypervisor.Range{main, {Start: 4 << 30, Size: 256 << 20}}
	if got := vm.Ranges(); fmt.Sprint(got) != fmt.Sprint(want) || vm.Info().MemoryBytes != 384<<20 {
		t.Errorf("Ranges = %v (%d bytes), want %v", got, vm.Info().MemoryBytes, want)
	}
	if view, err := vm.MapPhys(4<<30, 1<<40); err != nil || len(view) != 256<<20 {
		t.Errorf("MapPhys of the DIMM = %d bytes, %v", len(view), err)
	}
	if got := m.open(qemu.Options{NoQMP: true}).Ranges(); len(got) != 1 || got[0] != main {
		t.Errorf("Ranges without QMP = %v", got)
	}
}

// Memory that would reach into AMD's HyperTransport range starts at 1 TiB.
func TestTerabyte(t *testing.T) {
	labtest.NeedRoot(t)
	for _, tt := range []struct {
		cpu   string
		above hypervisor.PhysAddr
	}{{"EPYC", 1 << 40}, {"Skylake-Server", 4 << 30}} {
		t.Run(tt.cpu, func(t *testing.T) {
			at := []hypervisor.PhysAddr{1 << 20, 2<<30 - 8, tt.above, tt.above + 1006<<30 - 8}
			m := start(t, true, marked([]string{"-machine", "q35,memory-backend=m", "-cpu", tt.cpu + ",phys-bits=48", "-m", "1008G", "-S",
				"-object", "memory-backend-memfd,id=m,size=1008G,reserve=off"}, at...)...)
			for _, o := range []qemu.Options{{}, {NoQMP: true}} {
				checkMarks(t, m.open(o), at...)
			}
		})
	}
}

// A VM in its own mount and PID namespaces, with its monitor where only it sees
// the file.
func TestNamespaces(t *testing.T) {
	labtest.NeedRoot(t)
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		labtest.Missing(t, "no unshare here")
	}
	dir := tempDir(t)
	wrapper := filepath.Join(dir, "wrapper")
	hidden := filepath.Join(dir, "hidden")
	script := "#!/bin/sh\nmkdir -p " + hidden + "\nexec " + unshare + ` --mount --pid --fork --kill-child=KILL sh -c '
		mount -t tmpfs tmpfs ` + hidden + ` && cd ` + hidden + ` && exec ` + qemuBinary + ` "$@"' sh "$@"` + "\n"
	if err := os.WriteFile(wrapper, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"relative.sock", filepath.Join(hidden, "absolute.sock")} {
		name := "namespaced-" + filepath.Base(path)
		m := startBinary(t, wrapper, false, "-m", "64", "-S", "-name", name, "-qmp", "unix:"+path+",server=on,wait=off")
		d := qemu.New(qemu.Options{})
		vm, err := d.Open(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if info := vm.Info(); info.State != hypervisor.StatePaused || info.PID == m.pid() {
			t.Errorf("%+v", info)
		}
		m.compare(vm, 1<<20, 2<<20)
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
		m.kill()
	}
}

// Reading never makes the host allocate memory that the guest has not touched.
func TestReadAllocatesNothing(t *testing.T) {
	labtest.NeedRoot(t)
	file := filepath.Join(tempDir(t), "ram")
	const size = 512 << 20
	for _, tt := range []struct {
		name string
		args []string
		used func(m *machine) uint64
	}{
		{"private", nil, func(m *machine) uint64 { return statusKiB(t, m.pid(), "VmRSS:") << 10 }},
		{"shared", []string{"-object", "memory-backend-file,id=m,share=on,size=512M,mem-path=" + file, "-machine", "memory-backend=m"}, func(*machine) uint64 {
			st, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			return uint64(st.Sys().(*syscall.Stat_t).Blocks) * 512
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := start(t, false, append(tt.args, "-m", "512", "-S")...)
			vm := m.open(qemu.Options{})
			before := tt.used(m)
			buf := make([]byte, 16<<20)
			for at := hypervisor.PhysAddr(0); at < size; at += 16 << 20 {
				if err := hypervisor.ReadFull(vm, buf, at); err != nil {
					t.Fatal(err)
				}
				if err := hypervisor.ReadFull(vm, buf[:8], at); err != nil {
					t.Fatal(err)
				}
			}
			if after := tt.used(m); after > before+size/16 {
				t.Errorf("the VM takes %d MiB of the host, %d MiB before it was read", after>>20, before>>20)
			}
		})
	}
}

func statusKiB(t *testing.T, pid int, key string) uint64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	var n uint64
	if _, rest, ok := strings.Cut(string(b), key); ok {
		if _, err := fmt.Sscan(rest, &n); err != nil {
			t.Fatal(err)
		}
	}
	return n
}
