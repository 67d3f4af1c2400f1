package net_test

import (
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// wire is a tap interface in a network namespace of its own, and the host's end
// of it: a packet socket.
type wire struct {
	t     *testing.T
	tap   *os.File
	sock  int
	index int
}

func newWire(t *testing.T) *wire {
	labtest.NeedRoot(t)
	w := &wire{t: t}
	done := make(chan error)
	go func() {
		// The thread has another namespace than all others: it ends with the
		// goroutine, which does not unlock it.
		runtime.LockOSThread()
		done <- w.make()
	}()
	if err := <-done; err != nil {
		labtest.Missing(t, "a tap interface in a network namespace: %v", err)
	}
	t.Cleanup(func() {
		_ = unix.Close(w.sock)
		_ = w.tap.Close()
	})
	return w
}

func (w *wire) make() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	// No neighbour discovery of the host's disturbs.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0); err != nil && !os.IsNotExist(err) {
		w.t.Logf("IPv6 stays on: %v", err)
	}
	var err error
	if w.tap, err = os.OpenFile("/dev/net/tun", os.O_RDWR|unix.O_NONBLOCK, 0); err != nil {
		return err
	}
	req, err := unix.NewIfreq("tap0")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(int(w.tap.Fd()), unix.TUNSETIFF, req); err != nil {
		return err
	}
	if w.sock, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL))); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(w.sock, unix.SIOCGIFINDEX, req); err != nil {
		return err
	}
	w.index = int(req.Uint32())
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(w.sock, unix.SIOCSIFFLAGS, req); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(w.sock, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return err
	}
	return unix.Bind(w.sock, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: w.index})
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// send sends a frame to the guest, with struct virtio_net_hdr in front.
func (w *wire) send(header [10]byte, frame []byte) {
	w.t.Helper()
	if _, err := unix.Write(w.sock, append(header[:], frame...)); err != nil {
		w.t.Fatalf("send to the guest: %v", err)
	}
}

// receive returns the next frame from the guest to a destination.
func (w *wire) receive(to [6]byte) (header [10]byte, frame []byte) {
	w.t.Helper()
	buf := make([]byte, 128<<10)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		fds := []unix.PollFd{{Fd: int32(w.sock), Events: unix.POLLIN}}
		if n, _ := unix.Poll(fds, 1000); n <= 0 {
			continue
		}
		n, err := unix.Read(w.sock, buf)
		if err != nil {
			w.t.Fatal(err)
		}
		if n >= 24 && [6]byte(buf[10:16]) == to {
			return [10]byte(buf[:10]), buf[10:n]
		}
	}
	w.t.Fatalf("no frame to %x comes", to)
	return header, nil
}
