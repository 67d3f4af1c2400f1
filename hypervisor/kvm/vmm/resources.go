package vmm

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/disk"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/guestmem"
)

// Resources are the open files that a machine is made of. Whoever has the rights
// opens them (Open) and may hand them to a process that has none (Files,
// ResourcesFrom).
type Resources struct {
	KVM *os.File
	// Userfault is /dev/userfaultfd; nil where the host has none.
	Userfault *os.File
	Memory    *os.File // the guest's: guestmem.NewFile's
	Kernel    *os.File
	Initrd    *os.File // nil: none
	// Disks are, for each, the image and the files that it stands on, top first,
	// locked.
	Disks      [][]*os.File
	Taps       []*os.File
	VHostNets  []*os.File // by network card; nil: none
	VHostVsock *os.File
}

// MissingError says what of the host a machine lacks, and how to get it.
type MissingError struct {
	What   string // "KVM", "disk /x.img"
	Remedy string
	Err    error
}

func (e *MissingError) Error() string {
	s := e.What
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Remedy != "" {
		s += ": " + e.Remedy
	}
	return s
}

// Unwrap returns the cause.
func (e *MissingError) Unwrap() error { return e.Err }

// Open opens what c names. On an error nothing stays open. c must have passed
// Check.
func Open(c *Config) (_ *Resources, err error) {
	r := &Resources{}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if r.KVM, err = openKVM(c.NoNestedPaging); err != nil {
		return nil, err
	}
	// Without it page writes are trapped by read-only memory alone: no error.
	r.Userfault, _ = os.OpenFile("/dev/userfaultfd", os.O_RDWR|unix.O_CLOEXEC, 0)
	if r.Memory, err = guestmem.NewFile(c.Memory); err != nil {
		return nil, err
	}
	if r.Kernel, err = openRegular("kernel", c.Kernel, os.O_RDONLY); err != nil {
		return nil, err
	}
	if c.Initrd != "" {
		if r.Initrd, err = openRegular("initrd", c.Initrd, os.O_RDONLY); err != nil {
			return nil, err
		}
	}
	for _, d := range c.Disks {
		files, err := disk.OpenFiles(d.Path, d.options())
		if err != nil {
			return nil, err
		}
		r.Disks = append(r.Disks, files)
	}
	for i, n := range c.Nets {
		f, err := openTap(n.Tap)
		if err != nil {
			return nil, err
		}
		r.Taps = append(r.Taps, f)
		r.VHostNets = append(r.VHostNets, nil)
		if n.VHost == VhostOff {
			continue
		}
		r.VHostNets[i], err = os.OpenFile("/dev/vhost-net", os.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil && n.VHost == VhostOn {
			return nil, &MissingError{What: "vhost-net", Err: err, Remedy: "load the module vhost_net, or leave out vhost=on"}
		}
	}
	if c.VsockCID != 0 {
		if r.VHostVsock, err = os.OpenFile("/dev/vhost-vsock", os.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return nil, &MissingError{What: "vsock", Err: err, Remedy: "load the module vhost_vsock, or leave out the vsock device"}
		}
	}
	return r, nil
}

// openKVM opens /dev/kvm, and refuses one without nested paging unless any will do.
func openKVM(anyPaging bool) (*os.File, error) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, &MissingError{What: "KVM", Err: err, Remedy: "load kvm_intel or kvm_amd (modprobe), and enable VT-x or AMD-V in the firmware; in a VM, enable nested virtualisation on its host"}
	case errors.Is(err, os.ErrPermission):
		return nil, &MissingError{What: "KVM", Err: err, Remedy: "run as root, or as a member of the group kvm"}
	case err != nil:
		return nil, &MissingError{What: "KVM", Err: err, Remedy: "the module kvm is loaded, but no module for this processor: see the kernel's log"}
	}
	if anyPaging || nestedPaging() {
		return f, nil
	}
	f.Close()
	return nil, &MissingError{What: "KVM without nested paging", Remedy: "a processor with EPT (Intel) or NPT (AMD) is needed, and kvm_intel.ept=1 or kvm_amd.npt=1"}
}

func nestedPaging() bool {
	for _, p := range []string{"kvm_intel/parameters/ept", "kvm_amd/parameters/npt"} {
		if b, err := os.ReadFile(filepath.Join("/sys/module", p)); err == nil && len(b) > 0 && (b[0] == 'Y' || b[0] == '1') {
			return true
		}
	}
	return false
}

// openRegular opens a file or block device, and nothing that could block.
func openRegular(what, path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		remedy := ""
		switch {
		case errors.Is(err, os.ErrNotExist):
			remedy = "check the path"
		case errors.Is(err, syscall.EROFS), errors.Is(err, os.ErrPermission) && flags&os.O_RDWR != 0:
			remedy = "give it write permission, or add ,ro for a disk that is only read"
		}
		return nil, &MissingError{What: what, Err: err, Remedy: remedy}
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() && (st.Mode()&os.ModeDevice == 0 || st.Mode()&os.ModeCharDevice != 0) {
		err = errors.New("neither a regular file nor a block device")
	}
	if err != nil {
		f.Close()
		return nil, &MissingError{What: what + " " + path, Err: err}
	}
	return f, nil
}

// openTap attaches to an existing tap interface, with the header that virtio-net
// has (IFF_VNET_HDR, linux/if_tun.h).
func openTap(name string) (*os.File, error) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &MissingError{What: "tap " + name, Err: err, Remedy: "load the module tun, and run as root or as the tap's owner"}
	}
	if _, serr := os.Stat(filepath.Join("/sys/class/net", name)); serr != nil {
		f.Close()
		return nil, &MissingError{What: "tap " + name + ": no such interface", Remedy: fmt.Sprintf("make it: ip tuntap add %s mode tap && ip link set %s up", name, name)}
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, req)
	}
	if err != nil {
		f.Close()
		remedy := "it must be a tap interface that you own"
		if errors.Is(err, unix.EBUSY) {
			remedy = "another program holds it"
		}
		return nil, &MissingError{What: "tap " + name, Err: err, Remedy: remedy}
	}
	return f, nil
}

// fields are the files in the order in which they are handed on.
func (r *Resources) fields() []**os.File {
	fs := []**os.File{&r.KVM, &r.Userfault, &r.Memory, &r.Kernel, &r.Initrd, &r.VHostVsock}
	for _, list := range append(slices.Clone(r.Disks), r.Taps, r.VHostNets) {
		for i := range list {
			fs = append(fs, &list[i])
		}
	}
	return fs
}

// handover says which of the files exist; it goes along with Files.
type handover struct {
	Disks           []int // files of each
	Taps, VHostNets int
	Names           []string // of each field; empty: none
}

// maxChain is more than package disk lets an image have below it.
const maxChain = 64

// options are those of the image.
func (d *DiskConfig) options() disk.Options {
	return disk.Options{ReadOnly: d.ReadOnly, Format: d.Format, ID: d.Serial}
}

// Files returns the open files, and a text from which ResourcesFrom knows which
// is which.
func (r *Resources) Files() ([]*os.File, string, error) {
	h := handover{Taps: len(r.Taps), VHostNets: len(r.VHostNets)}
	for _, d := range r.Disks {
		h.Disks = append(h.Disks, len(d))
	}
	var files []*os.File
	for _, f := range r.fields() {
		name := ""
		if *f != nil {
			name = (*f).Name()
			files = append(files, *f)
		}
		h.Names = append(h.Names, name)
	}
	b, err := json.Marshal(h)
	return files, string(b), err
}

// ResourcesFrom is the way back: fds are those of Files, in order.
func ResourcesFrom(text string, fds []uintptr) (*Resources, error) {
	var h handover
	if err := json.NewDecoder(strings.NewReader(text)).Decode(&h); err != nil {
		return nil, fmt.Errorf("handed-over files: %w", err)
	}
	if min(h.Taps, h.VHostNets) < 0 || len(h.Disks) > maxDisks || max(h.Taps, h.VHostNets) > maxNets {
		return nil, errors.New("handed-over files: more than a machine has")
	}
	r := &Resources{Taps: make([]*os.File, h.Taps), VHostNets: make([]*os.File, h.VHostNets)}
	for _, n := range h.Disks {
		if n < 1 || n > maxChain {
			return nil, fmt.Errorf("handed-over files: a disk of %d files", n)
		}
		r.Disks = append(r.Disks, make([]*os.File, n))
	}
	fields := r.fields()
	if len(fields) != len(h.Names) {
		return nil, fmt.Errorf("handed-over files: %d names for %d files", len(h.Names), len(fields))
	}
	for i, name := range h.Names {
		if name == "" {
			continue
		}
		if len(fds) == 0 {
			return nil, errors.New("handed-over files: too few")
		}
		*fields[i] = os.NewFile(fds[0], name)
		fds = fds[1:]
	}
	return r, nil
}

// Close closes all that are open.
func (r *Resources) Close() error {
	var errs []error
	for _, f := range r.fields() {
		if *f != nil {
			errs = append(errs, (*f).Close())
			*f = nil
		}
	}
	return errors.Join(errs...)
}
