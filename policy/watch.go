package policy

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// watch starts the goroutine that reloads the policy when its files change.
func (e *Engine) watch() error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	if err := watchTree(w, e.source.Path); err != nil {
		_ = w.Close()
		return err
	}
	e.wg.Go(func() {
		e.watchLoop(w)
		_ = w.Close()
		for range w.Events { // closed when fsnotify's own goroutine has ended
		}
	})
	return nil
}

func (e *Engine) watchLoop(w *fsnotify.Watcher) {
	quiet := time.NewTimer(time.Hour)
	quiet.Stop()
	defer quiet.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return
		case ev, ok := <-w.Events:
			if !ok {
				return
			}
			if ev.Op == fsnotify.Chmod || !e.concerns(ev.Name) {
				continue
			}
			quiet.Reset(e.opts.Debounce)
		case err, ok := <-w.Errors:
			if !ok {
				return
			}
			// The kernel's queue overflowed: events are lost, so look.
			e.opts.Logger.Warn("watch of policy", "err", err)
			quiet.Reset(e.opts.Debounce)
		case <-quiet.C:
			// New folders first: a file that is put there while it is loaded
			// makes another event.
			if err := watchTree(w, e.source.Path); err != nil {
				e.opts.Logger.Warn("watch of policy", "err", err)
			}
			if _, err := e.Reload(e.ctx); err != nil && errors.Is(err, context.Canceled) {
				return
			}
		}
	}
}

// concerns reports whether a change of name can change the policy.
func (e *Engine) concerns(name string) bool {
	name, p := filepath.Clean(name), filepath.Clean(e.source.Path)
	return name == p || p == "." || strings.HasPrefix(name, p+string(filepath.Separator))
}

// watchTree watches what holds the policy (a bundle, or a whole folder, is
// replaced by a rename) and, if it is a folder, that and those in it. Watching a
// folder twice is no error.
func watchTree(w *fsnotify.Watcher, p string) error {
	if err := w.Add(filepath.Dir(filepath.Clean(p))); err != nil {
		return err
	}
	info, err := os.Stat(p)
	if err != nil || !info.IsDir() {
		return nil //nolint:nilerr // it was removed, perhaps to be put back: what holds it will tell
	}
	// WalkDir does not follow a link at its root; with a separator it does.
	return filepath.WalkDir(p+string(filepath.Separator), func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		if d.IsDir() {
			return w.Add(name)
		}
		return nil
	})
}
