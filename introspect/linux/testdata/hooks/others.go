package main

import (
	"fmt"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// makeTimers arms timers of each kind, an hour and more from now.
func makeTimers(t *truth) error {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, 0)
	if err != nil {
		return err
	}
	if err := unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{Value: unix.Timespec{Sec: 4001}}, nil); err != nil {
		return err
	}
	if _, err := unix.Setitimer(unix.ITIMER_REAL, unix.Itimerval{Value: unix.Timeval{Sec: 4003}}); err != nil {
		return err
	}
	// struct sigevent (include/uapi/asm-generic/siginfo.h) and struct itimerspec.
	event := [64]byte{8: 10 /* SIGUSR1 */}
	for _, clock := range []int{unix.CLOCK_MONOTONIC, unix.CLOCK_BOOTTIME} {
		var id int32
		if _, _, no := syscall.Syscall(unix.SYS_TIMER_CREATE, uintptr(clock), uintptr(unsafe.Pointer(&event)), uintptr(unsafe.Pointer(&id))); no != 0 {
			return fmt.Errorf("timer_create: %w", no)
		}
		spec := unix.ItimerSpec{Interval: unix.Timespec{Sec: 17}, Value: unix.Timespec{Sec: 4005 + int64(clock)}}
		if _, _, no := syscall.Syscall6(unix.SYS_TIMER_SETTIME, uintptr(id), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0); no != 0 {
			return fmt.Errorf("timer_settime: %w", no)
		}
		t.Timers[fmt.Sprint(clock)] = id
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return err
	}
	t.Timers["now"] = now.Nano() / int64(time.Second)
	return nil
}

// makeKeys adds keys to a keyring of the thread's user.
func makeKeys() error {
	ring := unix.KEY_SPEC_USER_KEYRING
	inner, err := unix.AddKey("keyring", "vt ring", nil, ring)
	if err != nil {
		return fmt.Errorf("add_key: %w", err)
	}
	for _, k := range []struct{ kind, desc string }{{"user", "vt user key"}, {"logon", "vt:logon key"}, {"user", "vt key to expire"}, {"user", "vt key to revoke"}} {
		id, err := unix.AddKey(k.kind, k.desc, []byte("SECRET-PAYLOAD"), inner)
		if err != nil {
			return fmt.Errorf("add_key %s: %w", k.desc, err)
		}
		switch k.desc {
		case "vt key to expire":
			_, err = unix.KeyctlInt(unix.KEYCTL_SET_TIMEOUT, id, 7200, 0, 0)
		case "vt key to revoke":
			_, err = unix.KeyctlInt(unix.KEYCTL_REVOKE, id, 0, 0, 0)
		case "vt user key":
			err = unix.KeyctlSetperm(id, 0x3f3f0101)
		}
		if err != nil {
			return fmt.Errorf("key %s: %w", k.desc, err)
		}
	}
	return nil
}
