package control

import (
	"context"
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/wire"
)

// partlyError is an error of a write that was done in part.
type partlyError struct {
	done int
	error
}

func (e *partlyError) Unwrap() error { return e.error }

// failure makes err ready to be sent.
func failure(err error) *wire.Error {
	e := wire.FromError(err)
	var p *partlyError
	if errors.As(err, &p) {
		e.Done = uint64(p.done)
	}
	return e
}

// do does one request. The response's files are closed when they are sent.
func (t *session) do(ctx context.Context, r wire.Message) (out wire.Message, err error) {
	m := t.s.m
	switch r.Method {
	case wire.MethodInfo:
		return out.JSON(t.s.info()), nil
	case wire.MethodPause:
		return out, m.Pause(ctx)
	case wire.MethodResume:
		return out, m.Resume(ctx)
	case wire.MethodState:
		s, err := m.State(ctx)
		if err == nil && s == hypervisor.StateRunning {
			s = t.s.info().State
		}
		return out.JSON(s), err
	case wire.MethodHold:
		return out, withBody(r, func(b wire.Token) error { return t.hold(ctx, b.Token) })
	case wire.MethodRelease:
		return out, withBody(r, func(b wire.Token) error { return t.release(b.Token) })
	case wire.MethodRegisters:
		regs, err := m.Registers(ctx)
		for i := range regs {
			out.Body = wire.AppendRegisters(out.Body, &regs[i])
		}
		return out, err
	case wire.MethodSetRegisters:
		regs, err := wire.ParseRegisters(r.Body)
		if err == nil && len(regs) != 1 {
			err = fmt.Errorf("%w: registers of %d vCPUs", wire.ErrMalformed, len(regs))
		}
		if err != nil {
			return out, err
		}
		return out, m.SetRegisters(ctx, regs[0])
	case wire.MethodWrite:
		gpa, p, err := wire.ParseWrite(r.Body)
		if err != nil {
			return out, err
		}
		if n, err := m.WritePhys(p, gpa); err != nil || n != len(p) {
			return out, &partlyError{n, err}
		}
		return out, nil
	case wire.MethodChannels:
		out.Files, err = t.openChannels()
		return out, err
	case wire.MethodSetTrap:
		return out, withBody(r, func(b wire.SetTrap) error { return t.setTrap(ctx, b) })
	case wire.MethodRemoveTrap:
		return out, withBody(r, func(b wire.Token) error { return t.removeTrap(ctx, b.Token) })
	case wire.MethodStartDirty:
		return out, t.startDirty(ctx)
	case wire.MethodDirty:
		return out, t.sendDirty(ctx, r.ID)
	case wire.MethodStopDirty:
		return out, t.stopDirty(ctx)
	case wire.MethodEvents:
		t.mu.Lock()
		t.wantsAll = true
		t.mu.Unlock()
		return out, nil
	case wire.MethodPowerButton:
		return out, m.PowerButton()
	case wire.MethodReset:
		return out, m.Reset(ctx)
	case wire.MethodStop:
		m.Stop()
		return out, nil
	case wire.MethodBalloon:
		return out, withBody(r, func(b wire.Balloon) error { return m.SetBalloon(ctx, b.Size) })
	case wire.MethodSave:
		return out, withBody(r, func(b wire.Save) error { return t.save(ctx, r.ID, b) })
	}
	return out, fmt.Errorf("%v: %w", r.Method, &hypervisor.NotSupportedError{
		What: r.Method.String(), Driver: "kvm", Remedy: "the VM was started by an older vantage",
	})
}

// withBody decodes a request's body for do.
func withBody[T any](r wire.Message, do func(T) error) error {
	var b T
	if err := r.Into(&b); err != nil {
		return err
	}
	return do(b)
}

// hold pauses the machine until the client lets go or ends.
func (t *session) hold(ctx context.Context, token uint64) error {
	t.mu.Lock()
	_, used := t.holds[token]
	n := len(t.holds)
	if !used && n < maxHolds {
		t.holds[token] = nil // is being made
	}
	t.mu.Unlock()
	switch {
	case used:
		return fmt.Errorf("%w: hold %d is in use", wire.ErrMalformed, token)
	case n >= maxHolds:
		return fmt.Errorf("hold: %d are there: %w", n, hypervisor.ErrNoResources)
	}
	release, err := t.s.m.Hold(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		delete(t.holds, token)
		return err
	}
	t.s.holds.Add(1)
	t.holds[token] = func() {
		t.s.holds.Add(-1)
		release()
	}
	return nil
}

func (t *session) release(token uint64) error {
	t.mu.Lock()
	release := t.holds[token]
	if release != nil {
		delete(t.holds, token)
	}
	t.mu.Unlock()
	if release == nil {
		return fmt.Errorf("%w: hold %d is not there", wire.ErrMalformed, token)
	}
	release()
	return nil
}

// takeDirty makes t the one that tracks dirty pages. The machine has one set of
// them: two clients would take them from each other.
func (s *Server) takeDirty(t *session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dirty != nil && s.dirty != t {
		return fmt.Errorf("dirty tracking: %w (pid %d)", hypervisor.ErrBusy, s.dirty.cred.Pid)
	}
	s.dirty = t
	return nil
}

// hasDirty and releaseDirty report whether t was the one.
func (s *Server) hasDirty(t *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dirty == t
}

func (s *Server) releaseDirty(t *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dirty != t {
		return false
	}
	s.dirty = nil
	return true
}

func (t *session) startDirty(ctx context.Context) error {
	if err := t.s.takeDirty(t); err != nil {
		return err
	}
	if err := t.s.m.StartDirty(ctx); err != nil {
		t.s.releaseDirty(t)
		return err
	}
	return nil
}

func (t *session) stopDirty(ctx context.Context) error {
	if !t.s.hasDirty(t) {
		return nil
	}
	err := t.s.m.StopDirty(ctx)
	if err == nil {
		t.s.releaseDirty(t)
	}
	return err
}

func (t *session) sendDirty(ctx context.Context, id uint64) error {
	if !t.s.hasDirty(t) {
		return errors.New("dirty pages are not tracked: start that first")
	}
	rs, err := t.s.m.Dirty(ctx)
	if err != nil {
		return err
	}
	for len(rs) > 0 && ctx.Err() == nil {
		n := min(len(rs), wire.MaxRanges)
		t.send(wire.Message{Kind: wire.KindPart, ID: id, Body: wire.AppendRanges(nil, rs[:n])})
		rs = rs[n:]
	}
	return ctx.Err()
}
