package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/event"
	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux"
	"github.com/vantage-vmi/vantage/node"
	"github.com/vantage-vmi/vantage/policy"
	"github.com/vantage-vmi/vantage/scanner"
)

// respondFlags say whether and how policy answers what is found.
type respondFlags struct {
	respond     bool
	policy      string
	dryRun      bool
	failMode    string
	deadline    time.Duration
	decisionLog string
	events      string
	eventForm   string
}

func (f *respondFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.BoolVar(&f.respond, "respond", false, "let policy answer findings: alert, pause, resume")
	fl.StringVar(&f.policy, "policy", defaultPolicy, "policy: a folder of Rego and data, or a bundle")
	fl.BoolVar(&f.dryRun, "dry-run", false, "with --respond: say what would be done, do nothing")
	fl.StringVar(&f.failMode, "fail-mode", string(policy.FailAlert), "what is done when policy fails: alert, pause, ignore")
	fl.DurationVar(&f.deadline, "policy-deadline", policy.DefaultDeadline, "how long one decision may take")
	fl.StringVar(&f.decisionLog, "decision-log", "", "append decisions to this file, one JSON object a line")
	fl.StringVar(&f.events, "events", "", "append events to this file, one JSON object a line")
	fl.StringVar(&f.eventForm, "event-format", "vantage", "form of --events: vantage or ocsf")
	completeFlag(cmd, "fail-mode", failModes()...)
	completeFlag(cmd, "event-format", "vantage", "ocsf")
}

// failModes returns the values of --fail-mode, for the shell.
func failModes() []string {
	return []string{string(policy.FailAlert), string(policy.FailPause), string(policy.FailIgnore)}
}

// closeTimeout is how long the last responses and log lines may take.
const closeTimeout = 5 * time.Second

// responder makes events of findings, writes them down, and lets policy answer
// where that was asked for.
type responder struct {
	app    *app
	source *event.Source
	events *event.Encoder // nil: not written
	file   io.Closer
	vms    *node.OpenVMs
	engine *policy.Engine // nil: policy is not asked
	failed error          // the first that kept no response back; see later
	exec   *policy.Executor
	log    *policy.DecisionLog
}

func (a *app) newResponder(ctx context.Context, n *node.Node, f *respondFlags) (_ *responder, err error) {
	if !f.respond && (f.policy != defaultPolicy || f.dryRun || f.decisionLog != "") {
		return nil, errors.New("--policy, --dry-run and --decision-log need --respond")
	}
	r := &responder{app: a, source: event.NewSource(nil), vms: n.NewOpenVMs()}
	defer func() {
		if err != nil {
			_ = r.close(ctx) // the first error is the one to tell
		}
	}()
	if err := r.openEvents(f); err != nil {
		return nil, err
	}
	if !f.respond {
		return r, nil
	}
	mode, err := policy.ParseFailMode(f.failMode)
	if err != nil {
		return nil, err
	}
	log, err := a.logger()
	if err != nil {
		return nil, err
	}
	if f.decisionLog != "" {
		if r.log, err = policy.NewDecisionLog(policy.LogOptions{Path: f.decisionLog, Input: true, Logger: log}); err != nil {
			return nil, err
		}
	}
	r.exec = policy.NewExecutor(policy.ExecutorOptions{
		Responders: policy.Library(r.alert, r.vms),
		DryRun:     f.dryRun, Events: r.source, Logger: log,
	})
	opts := policy.Options{
		Source: policySource(f.policy), Deadline: f.deadline, FailMode: mode, Responses: r.exec.Names(),
		Log: r.log, Events: r.source, Logger: log,
		OnEvent: r.engineEvent,
	}
	if r.engine, err = policy.New(ctx, opts); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *responder) openEvents(f *respondFlags) error {
	if f.eventForm != "vantage" && f.eventForm != "ocsf" {
		return fmt.Errorf("--event-format %q: want vantage or ocsf", f.eventForm)
	}
	if f.events == "" {
		return nil
	}
	file, err := os.OpenFile(f.events, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open events file: %w", err)
	}
	r.file = file
	r.events = event.NewEncoder(file)
	if f.eventForm == "ocsf" {
		r.events = event.NewOCSFEncoder(file, event.Product{Version: r.app.version})
	}
	return nil
}

// reach lets responses act on vm through the handle that is open, until the
// function it returns is called.
func (r *responder) reach(vm hypervisor.VM) func() { return r.vms.Add(vm) }

// alert is the built-in response of that name: it tells the operator. On the
// command line that is the line printed under the finding.
func (r *responder) alert(context.Context, policy.Response, *event.Event) error { return nil }

func (r *responder) finding(ctx context.Context, out *scanOutput, vm hypervisor.Info, f node.Finding) error {
	return r.handle(ctx, out, node.FindingEvent(r.source, vm, f))
}

// later keeps err for the end of the run where policy answers: whoever fills the
// disk from within a guest must not keep later findings from being answered.
func (r *responder) later(err error) error {
	if r.engine == nil {
		return err
	}
	r.failed = cmp.Or(r.failed, err)
	return nil
}

func (r *responder) summary(ctx context.Context, out *scanOutput, vm hypervisor.Info, s scanner.Summary) error {
	return r.handle(context.WithoutCancel(ctx), out, node.SummaryEvent(r.source, vm, s))
}

func (r *responder) hidden(ctx context.Context, out *scanOutput, vm hypervisor.Info) func(linux.Process) error {
	return func(p linux.Process) error {
		return r.later(r.handle(ctx, out, node.HiddenEvent(r.source, vm, p)))
	}
}

// handle writes e down, asks policy and carries out what it says.
func (r *responder) handle(ctx context.Context, out *scanOutput, e event.Event) error {
	failed := r.write(&e) // told, but no reason not to answer
	if r.engine == nil {
		return failed
	}
	d := r.engine.Decide(ctx, &e)
	if d.Err != nil && !r.app.json { // under --json the engine's own event tells of it
		out.response("policy", "failed", ": "+d.Error+" (fail mode "+string(d.FailMode)+")")
	}
	for i, done := range r.exec.Execute(ctx, d, &e) {
		failed = cmp.Or(failed, r.write(&done))
		text := ""
		if i < len(d.Responses) {
			text = ": " + d.Responses[i].Reason
		}
		if done.Response.Error != "" {
			text += ": " + done.Response.Error
		}
		if r.app.json {
			failed = cmp.Or(failed, r.app.printJSONErr(&done))
			continue
		}
		out.response(done.Response.Name, string(done.Response.Outcome), text)
	}
	return failed
}

// engineEvent takes what the policy engine tells of itself. An error of writing
// is met again, and told, when the event that it was about is written.
func (r *responder) engineEvent(e event.Event) {
	_ = r.write(&e)
	if r.app.json {
		_ = r.app.printJSONErr(&e)
	}
}

func (r *responder) write(e *event.Event) error {
	if r.events == nil {
		return nil
	}
	if err := r.events.Encode(e); err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	return nil
}

func (r *responder) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	errs := []error{r.failed}
	if r.engine != nil {
		errs = append(errs, r.engine.Close())
	}
	if r.exec != nil {
		errs = append(errs, r.exec.Close(ctx))
	}
	if r.log != nil {
		errs = append(errs, r.log.Close(ctx))
		if n := r.log.Stats().Dropped; n > 0 {
			errs = append(errs, fmt.Errorf("decision log: %d entries could not be written", n))
		}
	}
	if r.file != nil {
		errs = append(errs, r.file.Close())
	}
	return errors.Join(errs...)
}
