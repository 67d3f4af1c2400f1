package uffd

import (
	"errors"
	"os"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

func TestABI(t *testing.T) {
	labtest.CheckABI(t, []string{"sys/ioctl.h", "linux/userfaultfd.h"}, []labtest.ABIValue{
		{Expr: "UFFD_API", Ours: api},
		{Expr: "UFFDIO_API", Ours: ioAPI},
		{Expr: "UFFDIO_REGISTER", Ours: ioRegister},
		{Expr: "UFFDIO_UNREGISTER", Ours: ioUnregister},
		{Expr: "UFFDIO_WAKE", Ours: ioWake},
		{Expr: "UFFDIO_WRITEPROTECT", Ours: ioWriteProtect},
		{Expr: "USERFAULTFD_IOC_NEW", Ours: ioNew},
		{Expr: "UFFD_FEATURE_PAGEFAULT_FLAG_WP", Ours: featureWP},
		{Expr: "UFFD_FEATURE_THREAD_ID", Ours: featureThreadID},
		{Expr: "UFFD_FEATURE_WP_HUGETLBFS_SHMEM", Ours: featureWPShmem},
		{Expr: "UFFDIO_REGISTER_MODE_WP", Ours: modeWP},
		{Expr: "UFFDIO_WRITEPROTECT_MODE_WP", Ours: wpModeWP},
		{Expr: "UFFD_EVENT_PAGEFAULT", Ours: eventPageFault},
		{Expr: "UFFD_PAGEFAULT_FLAG_WRITE", Ours: faultWrite},
		{Expr: "UFFD_PAGEFAULT_FLAG_WP", Ours: faultWP},
		{Expr: "sizeof(struct uffd_msg)", Ours: messageSize},
		{Expr: "offsetof(struct uffd_msg, event)", Ours: 0},
		{Expr: "offsetof(struct uffd_msg, arg.pagefault.flags)", Ours: 8},
		{Expr: "offsetof(struct uffd_msg, arg.pagefault.address)", Ours: 16},
		{Expr: "offsetof(struct uffd_msg, arg.pagefault.feat.ptid)", Ours: 24},
		{Expr: "sizeof(struct uffdio_api)", Ours: uint64(unsafe.Sizeof(apiArg{}))},
		{Expr: "sizeof(struct uffdio_range)", Ours: uint64(unsafe.Sizeof(rangeArg{}))},
		{Expr: "sizeof(struct uffdio_register)", Ours: uint64(unsafe.Sizeof(registerArg{}))},
		{Expr: "sizeof(struct uffdio_writeprotect)", Ours: uint64(unsafe.Sizeof(protectArg{}))},
		{Expr: "offsetof(struct uffdio_register, mode)", Ours: uint64(unsafe.Offsetof(registerArg{}.mode))},
		{Expr: "offsetof(struct uffdio_writeprotect, mode)", Ours: uint64(unsafe.Offsetof(protectArg{}.mode))},
	})
}

// A write to a protected page waits, its thread is named, and it lands when the
// page is unprotected; a page that was never touched is protected too.
func TestProtect(t *testing.T) {
	dev, err := os.OpenFile("/dev/userfaultfd", os.O_RDWR, 0)
	if err == nil {
		defer dev.Close()
		t.Run("device", func(t *testing.T) { testProtect(t, dev) })
	}
	t.Run("call", func(t *testing.T) { testProtect(t, nil) })
}

func testProtect(t *testing.T, dev *os.File) {
	f, err := New(dev)
	if errors.Is(err, ErrNotSupported) {
		labtest.Missing(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	const size = 4 * 4096
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, size); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	mem[0] = 1
	addr := uintptr(unsafe.Pointer(&mem[0]))
	if err := f.Register(addr, size); err != nil {
		t.Fatal(err)
	}
	if err := f.Protect(addr, 2*4096); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for page := range 3 {
		tid, done := make(chan int, 1), make(chan error, 1)
		go func() {
			// The kernel writes to the page, as KVM does.
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			tid <- unix.Gettid()
			_, err := unix.Read(int(r.Fd()), mem[page*4096:][:1])
			done <- err
		}()
		if _, err := w.Write([]byte{42}); err != nil {
			t.Fatal(err)
		}
		thread := <-tid
		if page < 2 {
			var buf [4]Fault
			read := func() int {
				n := 0
				if err := f.Wait(func() bool { n = f.Take(buf[:]); return n > 0 }); err != nil {
					t.Fatal(err)
				}
				return n
			}
			if n := read(); n != 1 {
				t.Fatal(n)
			}
			if want := (Fault{addr + uintptr(page)*4096, thread, true, true}); buf[0] != want {
				t.Errorf("%+v, want %+v", buf[0], want)
			}
			// Who only is woken waits again.
			if err := f.Wake(addr, size); err != nil {
				t.Fatal(err)
			}
			if n := read(); n != 1 {
				t.Fatal(n)
			}
			select {
			case err := <-done:
				t.Error("the write has landed", err)
			default:
			}
			if err := f.Unprotect(buf[0].Addr, 4096); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-done; err != nil || mem[page*4096] != 42 {
			t.Error(err, mem[page*4096])
		}
	}
	if err := f.Unregister(addr, size); err != nil {
		t.Fatal(err)
	}
	read := make(chan error)
	go func() {
		read <- f.Wait(func() bool { return false })
	}()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-read; !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	if f.Protect(addr, size) == nil || f.Take(make([]Fault, 1)) != 0 {
		t.Error("a closed one protects")
	}
}
