package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Bed is where RunNested runs: which kind of nested paging KVM has there.
type Bed string

// Beds.
const (
	// NPT is QEMU's emulation of an AMD processor. The quicker one; an INT3 of an
	// inner guest never exits there.
	NPT Bed = "npt"
	// EPT is Bochs' emulation of an Intel processor: exits, INT3 and single steps
	// are as on hardware, and time counts instructions, so that figures repeat. The
	// outer guest is up after some 40 seconds; everything in it is slow. It has one
	// processor, which takes no interrupt while an inner guest has its own off: one
	// that loops so holds everything up, timers too. An instruction that leaves the
	// guest while it is stepped (CPUID, a page that is not mapped yet) has its step
	// told a second time, in front of it or after it: to a guest that is not stepped
	// any more by then as a #DB of its own.
	EPT Bed = "ept"
)

// eptIPS is how many instructions are a second of the outer guest's clock.
const eptIPS = 100_000_000

// runEPT is RunNested under Bochs.
func runEPT(ctx context.Context, cfg NestedConfig) (*NestedResult, error) {
	files, err := nestedFiles(ctx, cfg)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "vantage-lab-")
	if err != nil {
		return nil, fmt.Errorf("EPT bed: %w", err)
	}
	defer os.RemoveAll(dir)
	if err := makeISO(ctx, dir, cfg, files); err != nil {
		return nil, err
	}
	m := &bochs{dir: dir, console: newConsole()}
	if err := m.start(cfg.Memory); err != nil {
		return nil, err
	}
	defer m.stop()
	var out, status string
	err = m.console.wait(ctx, 0, func(text string) bool {
		var ok bool
		out, status, ok = answerIn(text, eptRunID)
		return ok
	})
	if err != nil {
		return nil, &GuestError{Name: "ept", Err: err, Console: tail(m.console.String(), 100), Stderr: m.log()}
	}
	return &NestedResult{Tests: parseTestOutput(out), Passed: status == "0", Output: out, Console: m.console.String()}, nil
}

// eptRunID is the number of the one command that the outer guest runs.
const eptRunID = "1"

// makeISO leaves dir/boot.iso, which boots the outer guest. Bochs gives no way to
// speak to it, so what it runs is in its /init.
func makeISO(ctx context.Context, dir string, cfg NestedConfig, files []File) error {
	fs, err := buildInitramfs(ctx, Config{
		Name: "ept", Kernel: cfg.Kernel, Files: files, Modules: append([]string{"kvm-intel"}, cfg.Modules...),
		Init: nestedPrepare + "echo VANTAGE-LAB-BEGIN " + eptRunID + "\n" + cfg.command() +
			"\nprintf '\\nVANTAGE-LAB-END " + eptRunID + " %s\\n' $?\n",
	})
	if err != nil {
		return err
	}
	boot := filepath.Join(dir, "iso", "boot")
	if err := os.MkdirAll(filepath.Join(boot, "grub"), 0o755); err != nil {
		return fmt.Errorf("EPT bed: %w", err)
	}
	f, err := os.Create(filepath.Join(boot, "initramfs"))
	if err != nil {
		return fmt.Errorf("EPT bed: %w", err)
	}
	_, err = fs.WriteTo(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("EPT bed: %w", err)
	}
	kernel, err := os.ReadFile(cfg.Kernel.Image)
	if err != nil {
		return fmt.Errorf("EPT bed: %w", err)
	}
	clock := "tsc_early_khz=" + strconv.Itoa(eptIPS/1000)
	if cfg.ClaimedClock {
		clock = ""
	}
	// The processor's own mitigations would be most of what is measured, a clock that
	// is watched is called unstable on a busy machine, and a processor that halts
	// makes Bochs sleep: then its time hardly goes on.
	grub := "linux /boot/vmlinuz console=ttyS0 panic=-1 quiet idle=poll tsc=reliable " + clock +
		" mitigations=off no_timer_check nokaslr random.trust_cpu=on\ninitrd /boot/initramfs\nboot\n"
	for name, b := range map[string][]byte{"vmlinuz": kernel, "grub/grub.cfg": []byte(grub)} {
		if err := os.WriteFile(filepath.Join(boot, name), b, 0o644); err != nil {
			return fmt.Errorf("EPT bed: %w", err)
		}
	}
	for program, pkg := range map[string]string{"grub-mkrescue": "grub-common", "xorriso": "xorriso", "mformat": "mtools"} {
		if _, err := exec.LookPath(program); err != nil {
			return &MissingError{What: program, Package: pkg}
		}
	}
	if _, err := os.Stat("/usr/lib/grub/i386-pc"); err != nil {
		return &MissingError{What: "GRUB for PC BIOS", Package: "grub-pc-bin"}
	}
	cmd := exec.CommandContext(ctx, "grub-mkrescue", "-d", "/usr/lib/grub/i386-pc", "-o", filepath.Join(dir, "boot.iso"), filepath.Join(dir, "iso"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("grub-mkrescue: %w: %s", err, lastLines(string(out), 5))
	}
	return os.RemoveAll(filepath.Join(dir, "iso"))
}

// bochs is a running Bochs.
type bochs struct {
	dir     string
	proc    *process
	console *console
	serial  *os.File
	read    chan struct{} // closed when the reader of serial is done
}

func (m *bochs) start(memory uint64) error {
	program, err := exec.LookPath("bochs")
	if err != nil {
		return &MissingError{What: "bochs", Package: "bochs"}
	}
	const bios, vga, term = "/usr/share/bochs/BIOS-bochs-latest", "/usr/share/vgabios/vgabios.bin", "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so"
	for path, pkg := range map[string]string{bios: "bochsbios", vga: "vgabios", term: "bochs-term", "/usr/bin/script": "bsdutils"} {
		if _, err := os.Stat(path); err != nil {
			return &MissingError{What: path, Package: pkg}
		}
	}
	fifo := filepath.Join(m.dir, "serial")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		return fmt.Errorf("EPT bed: %w", err)
	}
	// For writing too: so it can be opened before Bochs has.
	if m.serial, err = os.OpenFile(fifo, os.O_RDWR|unix.O_NONBLOCK, 0); err != nil {
		return fmt.Errorf("EPT bed: %w", err)
	}
	mib := strconv.FormatUint(memory/MiB, 10)
	rc := strings.Join([]string{
		"display_library: term",
		"romimage: file=" + bios, "vgaromimage: file=" + vga,
		"cpu: model=corei7_skylake_x, count=1, ips=" + strconv.Itoa(eptIPS) + ", reset_on_triple_fault=0",
		"memory: guest=" + mib + ", host=" + mib,
		"ata0-master: type=cdrom, path=" + filepath.Join(m.dir, "boot.iso") + ", status=inserted",
		"boot: cdrom", "clock: sync=none",
		"com1: enabled=1, mode=file, dev=" + fifo,
		"log: " + filepath.Join(m.dir, "log"),
		"panic: action=fatal", "error: action=ignore", "info: action=ignore", "debug: action=ignore", "",
	}, "\n")
	for name, text := range map[string]string{"rc": rc, "commands": "c\n"} {
		if err := os.WriteFile(filepath.Join(m.dir, name), []byte(text), 0o600); err != nil {
			m.serial.Close()
			return fmt.Errorf("EPT bed: %w", err)
		}
	}
	// Its display wants a terminal, and its debugger waits for a command.
	line := strings.Join([]string{"TERM=linux exec", shellQuote(program), "-q -f", shellQuote(filepath.Join(m.dir, "rc")), "-rc", shellQuote(filepath.Join(m.dir, "commands"))}, " ")
	if m.proc, err = startProcess("/usr/bin/script", []string{"-qec", line, "/dev/null"}, []string{m.dir}, false); err != nil {
		m.serial.Close()
		return err
	}
	m.read = make(chan struct{})
	go func() {
		m.console.readFrom(m.serial)
		close(m.read)
	}()
	// When what it prints ends, Bochs has.
	go func() {
		dropScreens(m.proc.stdout)
		m.serial.Close()
	}()
	return nil
}

// screenLine is where Bochs says which terminal it draws the guest's screen on.
var screenLine = regexp.MustCompile(`connected to screen "(/dev/pts/[0-9]+)"`)

// dropScreens reads what Bochs prints, and what it draws on the terminal that it
// names there: a blinking cursor fills a terminal that no one reads within minutes
// of the guest's time, and then Bochs stands still.
func dropScreens(printed io.Reader) {
	lines := bufio.NewReader(printed)
	var screens sync.WaitGroup
	defer screens.Wait()
	for {
		line, err := lines.ReadString('\n')
		if m := screenLine.FindStringSubmatch(line); m != nil {
			screens.Go(func() { dropScreen(m[1]) })
		}
		if err != nil {
			return
		}
	}
}

// dropScreen reads a terminal until its other end is closed.
func dropScreen(path string) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	// Else it would wait for the ends of lines, of which there are none.
	if t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
		t.Lflag &^= unix.ICANON | unix.ECHO | unix.ISIG
		t.Iflag, t.Oflag = 0, 0
		_ = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t)
	}
	_, _ = io.Copy(io.Discard, f)
}

// log returns the end of what Bochs itself says.
func (m *bochs) log() string {
	b, err := os.ReadFile(filepath.Join(m.dir, "log"))
	if err != nil {
		return m.proc.stderr.String()
	}
	return tail(string(b), 10)
}

// stop ends Bochs. The terminal's end ends it: script(1) holds that.
func (m *bochs) stop() {
	m.proc.kill() //nolint:errcheck // it may have ended by itself
	<-m.read
	m.proc.closeFiles()
}
