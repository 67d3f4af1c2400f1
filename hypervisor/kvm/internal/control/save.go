package control

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/wire"
)

// progressEvery is how often at most a save tells how far it is.
const progressEvery = 100 * time.Millisecond

// wantTime is how long a client may take to open a file, on a disk of its choice.
const wantTime = 30 * time.Second

// save saves the machine into files that the client opens.
func (t *session) save(ctx context.Context, id uint64, b wire.Save) error {
	f := &remoteFolder{ctx: ctx, t: t, id: id, answers: make(map[uint64]chan given)}
	t.mu.Lock()
	t.saves[id] = f
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		delete(t.saves, id)
		t.mu.Unlock()
		f.drop()
	}()
	var parent Folder
	if b.Parent {
		parent = parentFolder{f}
	}
	var last time.Time
	return t.s.m.Save(ctx, f, parent, func(p SaveProgress) {
		if now := time.Now(); now.Sub(last) >= progressEvery || p.Done == p.Total {
			last = now
			t.send(wire.Message{Kind: wire.KindPart, ID: id}.JSON(wire.Progress(p)))
		}
	})
}

// remoteFolder is a Folder whose files the client opens.
type remoteFolder struct {
	ctx context.Context // of the save
	t   *session
	id  uint64

	mu      sync.Mutex
	number  uint64
	answers map[uint64]chan given // by number; nil: the save is over
}

type given struct {
	file *os.File
	err  error
}

type parentFolder struct{ f *remoteFolder }

func (p parentFolder) Create(name string) (*os.File, error) {
	return nil, fmt.Errorf("create %s in the parent of a save: %w", name, os.ErrPermission)
}

func (p parentFolder) Open(name string) (*os.File, error) {
	return p.f.ask(wire.Want{Name: name, Parent: true})
}

// Create is Folder's.
func (f *remoteFolder) Create(name string) (*os.File, error) {
	return f.ask(wire.Want{Name: name, Create: true})
}

// Open is Folder's.
func (f *remoteFolder) Open(name string) (*os.File, error) { return f.ask(wire.Want{Name: name}) }

func (f *remoteFolder) ask(w wire.Want) (*os.File, error) {
	if err := wire.CheckFileName(w.Name); err != nil {
		return nil, err
	}
	answer := make(chan given, 1)
	f.mu.Lock()
	f.number++
	w.Number = f.number
	f.answers[w.Number] = answer
	f.mu.Unlock()
	f.t.send(wire.Message{Kind: wire.KindWant, ID: f.id}.JSON(w))
	timer := time.NewTimer(wantTime)
	defer timer.Stop()
	var err error
	select {
	case g := <-answer:
		return g.file, g.err
	case <-f.ctx.Done():
		err = context.Cause(f.ctx)
	case <-timer.C:
		err = wire.ErrUnresponsive
	}
	f.mu.Lock()
	delete(f.answers, w.Number)
	f.mu.Unlock()
	select { // it came at the last moment
	case g := <-answer:
		if g.file != nil {
			g.file.Close()
		}
	default:
	}
	return nil, fmt.Errorf("file %s of the saved VM: %w", w.Name, err)
}

// drop closes what no one waits for any more.
func (f *remoteFolder) drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers = nil
}

// give takes a file that a save has asked for.
func (t *session) give(m wire.Message) error {
	var g wire.Give
	err := m.Into(&g)
	if err == nil && (g.Error == nil) != (len(m.Files) == 1) {
		err = fmt.Errorf("%w: %d files for a save", wire.ErrMalformed, len(m.Files))
	}
	if err != nil {
		m.CloseFiles()
		return err
	}
	t.mu.Lock()
	f := t.saves[m.ID]
	t.mu.Unlock()
	if f == nil { // the save is over
		m.CloseFiles()
		return nil
	}
	f.mu.Lock()
	answer := f.answers[g.Number]
	delete(f.answers, g.Number)
	if answer == nil {
		m.CloseFiles()
	} else if g.Error != nil {
		m.CloseFiles()
		answer <- given{err: g.Error.Err()}
	} else {
		answer <- given{file: m.Files[0]}
	}
	f.mu.Unlock()
	return nil
}
