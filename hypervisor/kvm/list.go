package kvm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/socketdir"
)

// listAtOnce is how many machines are asked at a time.
const listAtOnce = 16

// folders returns where machines' sockets are, our own folder first.
func (d *Driver) folders() ([]socketdir.Dir, error) {
	if d.dirs == nil {
		return socketdir.All()
	}
	var dirs []socketdir.Dir
	for _, s := range d.dirs {
		dirs = append(dirs, socketdir.Dir(s))
	}
	return dirs, nil
}

// List returns the machines of this user; for root, those of all users. A machine
// that does not answer is listed with its state unknown, and told by the error.
func (d *Driver) List(ctx context.Context) ([]hypervisor.Info, error) {
	dirs, err := d.folders()
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var infos []hypervisor.Info
	var errs []error
	var wg sync.WaitGroup
	room := make(chan struct{}, listAtOnce)
	for i, dir := range dirs {
		names, err := dir.Names()
		if err != nil {
			errs = append(errs, err)
		}
		for _, name := range names {
			room <- struct{}{}
			wg.Go(func() {
				defer func() { <-room }()
				info, err := d.look(ctx, dir, name, i == 0)
				mu.Lock()
				defer mu.Unlock()
				if errors.Is(err, errDead) {
					return
				}
				infos = append(infos, info)
				if err != nil {
					errs = append(errs, err)
				}
			})
		}
	}
	wg.Wait()
	slices.SortFunc(infos, func(a, b hypervisor.Info) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.PID, b.PID), cmp.Compare(a.URI, b.URI))
	})
	slices.SortFunc(errs, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	return infos, errors.Join(errs...)
}

// errDead is of a socket whose machine has ended.
var errDead = fmt.Errorf("its process has ended: %w", hypervisor.ErrNotFound)

// look asks a machine who it is, and removes what a dead one has left.
func (d *Driver) look(ctx context.Context, dir socketdir.Dir, name string, own bool) (hypervisor.Info, error) {
	info := hypervisor.Info{Name: name, URI: uri(dir, name, own), Driver: DriverName, State: hypervisor.StateUnknown}
	c, err := d.connect(ctx, dir, name)
	if err != nil {
		return info, fmt.Errorf("VM %s: %w", info.URI, err)
	}
	c.memory.Close()
	welcome, pid := c.welcome.Info, c.pid
	c.close()
	info.State, info.MemoryBytes, info.VCPUs, info.PID = welcome.State, welcome.MemoryBytes, welcome.VCPUs, pid
	return info, nil
}

// uri names a machine: those of our own folder by name, others by path.
func uri(dir socketdir.Dir, name string, own bool) string {
	if own {
		return DriverName + ":" + name
	}
	return DriverName + ":" + dir.Socket(name)
}

// connect connects to the machine of this name.
func (d *Driver) connect(ctx context.Context, dir socketdir.Dir, name string) (*conn, error) {
	if err := dir.Check(name); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errors.Join(hypervisor.ErrNotFound, err)
		}
		return nil, err
	}
	c, err := dial(ctx, dir.Socket(name), d.timeout)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		dead, serr := dir.Sweep(name)
		switch {
		case serr != nil:
			d.log.Warn("what a dead VM has left stays", "vm", name, "error", serr)
			return nil, errDead
		case dead:
			return nil, errDead
		}
		return nil, fmt.Errorf("it is starting or ending: try again: %w", err)
	}
	return c, err
}

// Open opens the machine that target names: the name of one of ours, or the path
// of its socket. Root reaches other users' machines by name too, where only one
// has it.
func (d *Driver) Open(ctx context.Context, target string) (hypervisor.VM, error) {
	vm, err := d.open(ctx, target)
	if err != nil {
		return nil, err
	}
	return vm, nil
}

func (d *Driver) open(ctx context.Context, target string) (*VM, error) {
	dir, name, own, err := d.find(target)
	if err != nil {
		return nil, err
	}
	c, err := d.connect(ctx, dir, name)
	if err != nil {
		return nil, fmt.Errorf("VM %s: %w", name, err)
	}
	return newVM(d, c, name, uri(dir, name, own))
}

// find returns where target's socket is, and whether that is our own folder.
func (d *Driver) find(target string) (dir socketdir.Dir, name string, own bool, err error) {
	dirs, err := d.folders()
	if err != nil {
		return "", "", false, err
	}
	if strings.ContainsRune(target, os.PathSeparator) {
		dir, name, err = socketdir.Split(target)
		return dir, name, len(dirs) > 0 && dir == dirs[0], err
	}
	if err := socketdir.CheckName(target); err != nil {
		return "", "", false, errors.Join(hypervisor.ErrNotFound, err)
	}
	var found []socketdir.Dir
	for i, dir := range dirs {
		if st, err := os.Lstat(dir.Socket(target)); err == nil && st.Mode()&fs.ModeSocket != 0 {
			if i == 0 {
				return dir, target, true, nil
			}
			found = append(found, dir)
		}
	}
	switch len(found) {
	case 0:
		return "", "", false, fmt.Errorf("VM %q: %w", target, hypervisor.ErrNotFound)
	case 1:
		return found[0], target, false, nil
	}
	var uris []string
	for _, dir := range found {
		uris = append(uris, uri(dir, target, false))
	}
	return "", "", false, fmt.Errorf("VM %q: %w: %s", target, ErrAmbiguous, strings.Join(uris, ", "))
}
