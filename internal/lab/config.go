package lab

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// MiB and GiB are units for Config.Memory.
const (
	MiB = 1 << 20
	GiB = 1 << 30
)

// ReadyMarker is the line that a guest prints when it is up, unless Config.Ready
// says otherwise.
const ReadyMarker = "VANTAGE-LAB-READY"

// DefaultBootTimeout is how long Boot waits for the marker: far more than the 4
// to 6 seconds that a boot takes, for machines that do much else at once.
const DefaultBootTimeout = 4 * time.Minute

// Machine is QEMU's machine type.
type Machine string

// Machines: their RAM is split around the hole below 4 GiB at different places.
const (
	PC  Machine = "pc"
	Q35 Machine = "q35"
)

// Config says how a guest is started. Only Kernel is required.
type Config struct {
	Name   string  // QEMU's -name; "lab" when empty
	Kernel *Kernel // what FetchKernel returned

	Memory  uint64  // bytes, a multiple of 1 MiB; 512 MiB when zero
	CPUs    int     // 1 when zero
	Machine Machine // PC when empty

	// Shared gives the guest memory that other processes can map (a memfd);
	// without it, and without RAMPath, it is QEMU's private anonymous memory.
	Shared bool
	// RAMPath makes the guest's memory a file at this path (share=on). The
	// file's name is removed as soon as QEMU has it open, so that nothing can
	// be left behind; with KeepRAMPath it stays until Close or QEMU's end.
	RAMPath     string
	KeepRAMPath bool

	QMP    bool   // give it a QMP socket, Guest.QMPSocket
	KASLR  bool   // else the kernel is told nokaslr
	LA57   bool   // five levels of page tables; needs CPU to be empty
	Accel  string // QEMU's -accel; "tcg" when empty
	CPU    string // QEMU's -cpu; when empty, "host" under KVM, else all but cx16
	Append string // more words for the kernel's command line

	ExtraArgs []string // more arguments for QEMU

	// Init is a busybox shell script, run by /init after the usual mounts.
	// Lines of commands on the console are then run in the same shell
	// (Guest.Run). Empty: nothing but that.
	Init string
	// Program boots the truth program instead of a shell: see Guest.Truth.
	Program bool
	// RawInit replaces /init altogether. Guest.Run does not work then.
	RawInit string
	// Modules of Kernel to load, in the guest's /lib/modules, before Init.
	Modules []string
	// Files adds files to the initramfs, by their path in the guest.
	Files []File
	// Initrd boots this file instead of an initramfs that the lab makes.
	Initrd string

	Ready   string        // line that says the guest is up; ReadyMarker when empty, "-" for: do not wait
	Timeout time.Duration // for Boot; DefaultBootTimeout when zero

	// Detach lets the guest run on when this process ends, however it ends.
	// Its files are then removed when QEMU ends.
	Detach bool
}

// File is a file for the guest: Data, or else a copy of the file Host, or else
// a symbolic link to Link.
type File struct {
	Path string
	Mode uint32 // permission bits; 0644 when zero
	Data []byte
	Host string
	Link string
}

// withDefaults returns a checked copy of c.
func (c Config) withDefaults() (Config, error) {
	if c.Kernel == nil {
		return c, errors.New("lab: Config.Kernel is missing")
	}
	if c.Name == "" {
		c.Name = "lab"
	}
	if strings.ContainsAny(c.Name, ",/\x00\n") {
		return c, fmt.Errorf("lab: Config.Name %q has a comma, slash or control byte", c.Name)
	}
	if strings.ContainsAny(c.RAMPath, ",\x00\n") {
		return c, fmt.Errorf("lab: Config.RAMPath %q has a comma or control byte", c.RAMPath)
	}
	if c.Shared && c.RAMPath != "" {
		return c, errors.New("lab: Config.Shared and Config.RAMPath exclude each other")
	}
	if c.Memory == 0 {
		c.Memory = 512 * MiB
	}
	if c.Memory%MiB != 0 {
		return c, fmt.Errorf("lab: Config.Memory %d is no multiple of 1 MiB", c.Memory)
	}
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if c.Machine == "" {
		c.Machine = PC
	}
	if c.Accel == "" {
		c.Accel = "tcg"
	}
	if c.Ready == "" {
		c.Ready = ReadyMarker
	}
	if c.Program && c.Modules == nil {
		c.Modules = TruthModules()
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultBootTimeout
	}
	if c.CPU == "" && strings.HasPrefix(c.Accel, "kvm") {
		c.CPU = "host"
	}
	if c.CPU == "" {
		// QEMU 7.2's emulation of cmpxchg16b can corrupt the flags: without
		// -cx16 about 1 of 12 boots of a 6.12 kernel panics.
		c.CPU = "max,-cx16,la57=off"
		if c.LA57 {
			c.CPU = "max,-cx16,la57=on"
		}
	}
	return c, nil
}

// qemuArgs returns QEMU's arguments. monitorFD is the number of the inherited
// socket that the lab's own monitor speaks over.
func (c Config) qemuArgs(monitorFD int, initrd, qmpSocket string) []string {
	machine := string(c.Machine)
	args := []string{"-name", c.Name, "-accel", c.Accel, "-cpu", c.CPU,
		"-smp", fmt.Sprint(c.CPUs), "-m", fmt.Sprintf("%dM", c.Memory/MiB)}
	switch {
	case c.Shared:
		args = append(args, "-object", fmt.Sprintf("memory-backend-memfd,id=ram,size=%d,share=on", c.Memory))
		machine += ",memory-backend=ram"
	case c.RAMPath != "":
		args = append(args, "-object",
			fmt.Sprintf("memory-backend-file,id=ram,size=%d,mem-path=%s,share=on", c.Memory, c.RAMPath))
		machine += ",memory-backend=ram"
	}
	// no_timer_check: on a busy machine the emulated timer can be so late that
	// the kernel believes it to be broken, and panics.
	cmdline := "console=ttyS0 panic=-1 no_timer_check"
	if !c.KASLR {
		cmdline += " nokaslr"
	}
	if c.Append != "" {
		cmdline += " " + c.Append
	}
	args = append(args, "-machine", machine,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", c.Kernel.Image, "-initrd", initrd, "-append", cmdline,
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		// The lab's monitor has no path: no driver can find or hold it.
		"-chardev", fmt.Sprintf("socket,id=lab,fd=%d", monitorFD), "-mon", "chardev=lab,mode=control")
	if qmpSocket != "" {
		args = append(args, "-qmp", "unix:"+qmpSocket+",server=on,wait=off")
	}
	return append(args, c.ExtraArgs...)
}
