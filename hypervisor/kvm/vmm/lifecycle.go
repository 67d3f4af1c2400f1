package vmm

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
)

// EventKind is what happened to a machine.
type EventKind string

// Kinds of events.
const (
	EventPaused      EventKind = "paused"
	EventResumed     EventKind = "resumed"
	EventReset       EventKind = "reset"        // by the guest, by Reset
	EventTripleFault EventKind = "triple-fault" // and the reset that follows
	EventPanicked    EventKind = "panicked"     // the guest's kernel says so (pvpanic)
	EventPowerOff    EventKind = "power-off"    // the guest switched itself off
	EventStopped     EventKind = "stopped"      // by its owner
	EventFailed      EventKind = "failed"       // Detail says why
)

// Event is one thing that happened to a machine.
type Event struct {
	Kind   EventKind `json:"kind"`
	Time   time.Time `json:"time"`
	Detail string    `json:"detail,omitempty"`
}

// Outcome is how a machine ended.
type Outcome struct {
	Kind EventKind // EventPowerOff, EventStopped, EventReset (with NoReboot), EventFailed
	Err  error     // of EventFailed
}

// endKind is what a request asks of the manager.
type endKind int

const (
	doReset endKind = iota
	endPowerOff
	endStopped
	endFailed
)

type request struct {
	kind   endKind
	event  EventKind
	err    error
	stops  bool // the requester has stopped the vCPUs (StopSoon)
	answer chan error
}

// request hands r to the manager. It never blocks: a full queue has something in
// it already that ends or resets the machine.
func (m *Machine) request(r request) bool {
	select {
	case m.requests <- r:
		return true
	default:
		return false
	}
}

func (m *Machine) event(kind EventKind, detail string) {
	select {
	case m.events <- Event{Kind: kind, Time: time.Now().UTC(), Detail: detail}:
	default: // a guest that resets in a loop must not fill our memory
		m.log.Warn("machine event dropped", "kind", string(kind))
	}
}

// tell hands events to whoever asked for them, until the machine has ended.
func (m *Machine) tell() {
	for e := range m.events {
		if m.opt.Events != nil {
			m.opt.Events(e)
		}
	}
}

// manage does what vCPUs and owners ask for, one after the other, until the
// machine ends.
func (m *Machine) manage() {
	for r := range m.requests {
		if r.kind == doReset && !m.opt.NoReboot {
			err := m.reset(r)
			if r.answer != nil {
				r.answer <- err
			}
			if err == nil {
				continue
			}
			r = request{kind: endFailed, err: fmt.Errorf("reset: %w", err)}
		}
		m.finish(r)
		return
	}
}

// finish ends the machine.
func (m *Machine) finish(r request) {
	m.vm.Halt()
	m.quiesce()
	kinds := map[endKind]EventKind{doReset: EventReset, endPowerOff: EventPowerOff, endStopped: EventStopped, endFailed: EventFailed}
	m.outcome = Outcome{Kind: kinds[r.kind], Err: r.err}
	detail := ""
	if r.err != nil {
		detail = r.err.Error()
	}
	m.event(m.outcome.Kind, detail)
	if r.answer != nil {
		r.answer <- nil
	}
	if m.devices.console != nil {
		m.devices.console.close()
	}
	close(m.done)
	// Requests that came too late are not done: their senders see done.
	m.life.Lock() // event is called with life held, or by threads that are gone
	close(m.events)
	m.life.Unlock()
}

// coreEnded is told by a vCPU's thread that all vCPUs have ended.
func (m *Machine) coreEnded(r core.Reason) {
	err := r.Err
	if err == nil {
		err = fmt.Errorf("vCPU %d ended: %s", r.VCPU, r.Kind)
	}
	m.request(request{kind: endFailed, err: err})
}

// stopFor stops the vCPUs and asks the manager: for a device, on a vCPU's thread.
func (m *Machine) stopFor(kind endKind, event EventKind) {
	m.vm.StopSoon()
	if !m.request(request{kind: kind, event: event, stops: true}) {
		m.vm.Go()
	}
}

// reset puts the machine into the state in which it was switched on, and boots.
func (m *Machine) reset(r request) error {
	m.life.Lock()
	defer m.life.Unlock()
	m.vm.Stop()
	defer m.vm.Go()
	if r.stops {
		defer m.vm.Go()
	}
	ctx, cancel := context.WithTimeout(context.Background(), settleTime)
	defer cancel()
	if err := m.vm.Settle(ctx); err != nil {
		return fmt.Errorf("a vCPU waits for the answer to a trap: %w", err)
	}
	m.event(r.event, "")
	m.quiesce()
	for i, p := range m.parts {
		if err := p.saved.RestoreState(m.power.parts[i]); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	if err := m.power.cpus.Apply(m.vm); err != nil {
		return err
	}
	m.traps.Reset()
	if err := m.load(); err != nil {
		return err
	}
	m.unquiesce()
	return nil
}

// settleTime is how long a reset or save waits for answers to traps. A client
// that does not answer has lost its traps long before.
const settleTime = 30 * time.Second

// Pause is hypervisor.Pauser's. The machine stays paused until Resume.
func (m *Machine) Pause(context.Context) error {
	m.life.Lock()
	defer m.life.Unlock()
	if m.ended() {
		return hypervisor.ErrGone
	}
	m.vm.Stop()
	if m.paused.CompareAndSwap(false, true) {
		m.event(EventPaused, "")
		return nil
	}
	m.vm.Go() // it was paused, by a trap's answer perhaps: now it stands for sure
	return nil
}

// pauseSoon is Pause on a vCPU's thread, for a trap's answer.
func (m *Machine) pauseSoon() {
	if m.paused.CompareAndSwap(false, true) {
		m.vm.StopSoon()
	}
}

// Resume is hypervisor.Pauser's.
func (m *Machine) Resume(context.Context) error {
	m.life.Lock()
	defer m.life.Unlock()
	if m.ended() {
		return hypervisor.ErrGone
	}
	if !m.paused.Load() {
		return nil
	}
	for _, v := range m.vm.VCPUs() {
		// The guest's watchdogs are told that it stood still. A guest without
		// kvmclock has nothing that could be told.
		_ = v.KVM().KVMClockCtrl()
	}
	if m.paused.CompareAndSwap(true, false) {
		m.vm.Go()
	}
	m.event(EventResumed, "")
	return nil
}

// State is hypervisor.Pauser's.
func (m *Machine) State(context.Context) (hypervisor.State, error) {
	if m.ended() {
		return hypervisor.StateUnknown, hypervisor.ErrGone
	}
	return m.Info().State, nil
}

// Reset is the button: the guest is not asked. It returns when the kernel boots.
func (m *Machine) Reset(ctx context.Context) error {
	answer := make(chan error, 1)
	if !m.request(request{kind: doReset, event: EventReset, answer: answer}) {
		return fmt.Errorf("reset: %w", hypervisor.ErrBusy)
	}
	select {
	case err := <-answer:
		return err
	case <-m.done:
		return hypervisor.ErrGone
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Stop ends the guest where it stands, as pulling the plug does, and returns when
// it has ended.
func (m *Machine) Stop() {
	m.request(request{kind: endStopped})
	<-m.done
}

// Hold stops the vCPUs, beside what Pause and other holds do, until release is
// called, which may be done several times.
func (m *Machine) Hold(context.Context) (release func(), err error) {
	if m.ended() {
		return nil, hypervisor.ErrGone
	}
	m.vm.Stop()
	return sync.OnceFunc(m.vm.Go), nil
}
