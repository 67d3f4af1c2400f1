package kvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/wire"
)

// maxSaveFiles bounds how many files a machine may ask for.
const maxSaveFiles = 64

// Save is hypervisor.Saver's. The files are opened here, with our rights, and
// written by the machine, which has none.
func (vm *VM) Save(ctx context.Context, dir, parent string, progress func(done, total uint64)) (err error) {
	f := &saveFolder{}
	if err := f.open(dir, parent); err != nil {
		return fmt.Errorf("save VM %s: %w", vm.name, err)
	}
	defer func() {
		err = errors.Join(err, f.close(err == nil))
		if err != nil {
			err = fmt.Errorf("save: %w", err)
		}
	}()
	tell, told := teller(progress)
	defer told()
	r, err := vm.do(ctx, wire.Message{Method: wire.MethodSave}.JSON(wire.Save{Parent: parent != ""}), func(m wire.Message) error {
		if m.Kind == wire.KindWant {
			return f.give(vm.c, m)
		}
		var p wire.Progress
		if err := m.Into(&p); err != nil {
			return err
		}
		tell(p)
		return nil
	})
	r.CloseFiles()
	return err
}

// teller lets progress be told by a goroutine of its own: one that is slow misses
// some of it, and does not keep the connection from being read. The second
// function returns when progress has been told for the last time.
func teller(progress func(done, total uint64)) (tell func(wire.Progress), told func()) {
	if progress == nil {
		return func(wire.Progress) {}, func() {}
	}
	latest := make(chan wire.Progress, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		for p := range latest {
			progress(p.Done, p.Total)
		}
	})
	tell = func(p wire.Progress) {
		select {
		case <-latest: // not told yet, and old now
		default:
		}
		latest <- p
	}
	return tell, func() {
		close(latest)
		wg.Wait()
	}
}

// saveFolder is the folder that a machine is saved into.
type saveFolder struct {
	path         string
	made         bool // it was not there before
	dir, parent  *os.File
	created      []string
	createdFiles []*os.File
	asked        int
}

func (f *saveFolder) open(dir, parent string) (err error) {
	f.path = dir
	err = os.Mkdir(dir, 0o700)
	f.made = err == nil
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close(false))
		}
	}()
	if f.dir, err = os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	if names, err := f.dir.Readdirnames(1); len(names) > 0 {
		return fmt.Errorf("%s is not empty: name a new folder", dir)
	} else if !f.made && err == nil {
		return fmt.Errorf("%s cannot be listed", dir)
	}
	if parent == "" {
		return nil
	}
	f.parent, err = os.OpenFile(parent, os.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return err
}

// give opens a file that the machine wants.
func (f *saveFolder) give(c *conn, m wire.Message) error {
	var w wire.Want
	if err := m.Into(&w); err != nil {
		return err
	}
	file, err := f.file(w)
	g := wire.Message{Kind: wire.KindGive, ID: m.ID}.JSON(wire.Give{Number: w.Number, Error: wire.FromError(err)})
	if err == nil {
		g.Files = append(g.Files, file)
	}
	err = c.c.Send(g, sendTime)
	if file != nil && !w.Create {
		file.Close() // a created one is synced at the end
	}
	return err
}

func (f *saveFolder) file(w wire.Want) (*os.File, error) {
	if err := wire.CheckFileName(w.Name); err != nil {
		return nil, err
	}
	if f.asked++; f.asked > maxSaveFiles {
		return nil, fmt.Errorf("%w: more than %d files", wire.ErrMalformed, maxSaveFiles)
	}
	dir, flags := f.dir, os.O_RDONLY
	switch {
	case w.Parent && w.Create:
		return nil, fmt.Errorf("create %s in the parent: %w", w.Name, fs.ErrPermission)
	case w.Parent && f.parent == nil:
		return nil, fmt.Errorf("file %s of the parent: %w", w.Name, fs.ErrNotExist)
	case w.Parent:
		dir = f.parent
	case w.Create:
		flags = os.O_RDWR | os.O_CREATE | os.O_EXCL
	}
	fd, err := unix.Openat(int(dir.Fd()), w.Name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: filepath.Join(dir.Name(), w.Name), Err: err}
	}
	file := os.NewFile(uintptr(fd), filepath.Join(dir.Name(), w.Name))
	if w.Create {
		f.created, f.createdFiles = append(f.created, w.Name), append(f.createdFiles, file)
	}
	return file, nil
}

// close makes what was saved last, or removes it.
func (f *saveFolder) close(good bool) error {
	var errs []error
	for _, file := range f.createdFiles {
		if good {
			errs = append(errs, file.Sync())
		}
		file.Close()
	}
	if good && f.dir != nil {
		errs = append(errs, f.dir.Sync())
	}
	if !good {
		for _, name := range slices.Backward(f.created) {
			errs = append(errs, os.Remove(filepath.Join(f.path, name)))
		}
		if f.made {
			errs = append(errs, os.Remove(f.path))
		}
	}
	for _, d := range []*os.File{f.dir, f.parent} {
		if d != nil {
			d.Close()
		}
	}
	return errors.Join(errs...)
}
