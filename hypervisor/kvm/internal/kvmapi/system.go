package kvmapi

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// System is an open /dev/kvm.
type System struct {
	file     *os.File
	mmapSize int
}

// Open opens path ("/dev/kvm" when empty). The error wraps os.ErrNotExist when
// the host has no KVM, and os.ErrPermission when it may not be used.
func Open(path string) (*System, error) {
	if path == "" {
		path = "/dev/kvm"
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return NewSystem(f)
}

// NewSystem takes an open /dev/kvm, and closes it on error.
func NewSystem(f *os.File) (*System, error) {
	s := &System{file: f}
	v, err := ioctl(s.fd(), getAPIVersion, 0)
	if err == nil && v != apiVersion {
		err = fmt.Errorf("it speaks version %d", v)
	}
	if err == nil {
		s.mmapSize, err = ioctl(s.fd(), getVCPUMmapSize, 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s is not KVM's interface of version %d: %w", f.Name(), apiVersion, err)
	}
	return s, nil
}

func (s *System) fd() int { return int(s.file.Fd()) }

// Close closes it. VMs that were made live on.
func (s *System) Close() error { return s.file.Close() }

// Check returns what KVM_CHECK_EXTENSION says: 0 when it is not there.
func (s *System) Check(c Cap) int {
	v, err := ioctl(s.fd(), checkExtension, uintptr(c))
	if err != nil {
		return 0
	}
	return v
}

// SupportedCPUID returns KVM_GET_SUPPORTED_CPUID.
func (s *System) SupportedCPUID() ([]CPUIDEntry, error) {
	t := &cpuidTable{nent: maxCPUIDEntries}
	if err := ioctlPtr(s.fd(), getSupportedCPUID, t); err != nil {
		return nil, fmt.Errorf("KVM_GET_SUPPORTED_CPUID: %w", err)
	}
	return t.entries[:min(t.nent, maxCPUIDEntries)], nil
}

// MSRIndexList returns the MSRs that are a guest's state (KVM_GET_MSR_INDEX_LIST).
func (s *System) MSRIndexList() ([]uint32, error) {
	l := &msrList{nmsrs: maxMSRs}
	if err := ioctlPtr(s.fd(), getMSRIndexList, l); err != nil {
		return nil, fmt.Errorf("KVM_GET_MSR_INDEX_LIST: %w", err)
	}
	return l.indices[:min(l.nmsrs, maxMSRs)], nil
}

// CreateVM makes a VM.
func (s *System) CreateVM() (*VM, error) {
	fd, err := ioctl(s.fd(), createVM, 0)
	if err != nil {
		return nil, fmt.Errorf("KVM_CREATE_VM: %w", err)
	}
	unix.CloseOnExec(fd)
	return &VM{fd: fd, mmapSize: s.mmapSize}, nil
}
