package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/policy"
	defaultpolicy "github.com/vantage-vmi/vantage/rules/policy"
)

func (a *app) policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Test, try and compare policies",
		Long: `Test, try and compare policies. A policy is a folder of Rego and data files, or
a bundle (tar.gz). It decides on events (see 'vantage scan --events FILE'); the
word 'default' names the policy that ships with Vantage.`,
		Example: `  vantage policy test my-policy/
  vantage policy replay default found.ndjson --against my-policy/`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.policyTestCommand(), a.policyEvalCommand(), a.policyReplayCommand())
	return cmd
}

// defaultPolicy names the policy that ships with Vantage.
const defaultPolicy = "default"

// policySource returns the policy that name means.
func policySource(name string) policy.Source {
	if name == defaultPolicy {
		return policy.Source{FS: defaultpolicy.FS()}
	}
	return policy.Source{Path: name}
}

func onePolicy(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("want one policy (a folder, a bundle, or 'default'), got %d", len(args))
	}
	return nil
}

func (a *app) policyTestCommand() *cobra.Command {
	var opts policy.TestOptions
	cmd := &cobra.Command{
		Use:   "test DIR",
		Short: "Run a policy's own tests",
		Long: `Run the tests (rules test_… in files *_test.rego) of a policy, and tell how much
of it they cover. Status 1 when a test fails, or when there is none.`,
		Example: `  vantage policy test my-policy/
  vantage policy test default --run pause`,
		Args: onePolicy,
		RunE: func(cmd *cobra.Command, args []string) error {
			rep, err := policy.Test(cmd.Context(), policySource(args[0]), opts)
			if err != nil {
				return err
			}
			if a.json {
				if err := a.printJSON(rep); err != nil {
					return err
				}
			} else {
				a.printTestReport(rep)
			}
			if !rep.OK() {
				return &exitError{code: exitFound}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&opts.Filter, "run", "", "run only tests whose name matches this regular expression")
	return cmd
}

func (a *app) printTestReport(rep *policy.TestReport) {
	w, st := a.stdout, term.NewStyle(a.stdout)
	for _, t := range rep.Tests {
		mark := st.Green("pass")
		if t.Outcome != "pass" && t.Outcome != "skip" {
			mark = st.Red(t.Outcome)
		} else if t.Outcome == "skip" {
			mark = t.Outcome
		}
		fmt.Fprintf(w, "%s  %s.%s\n", mark, term.Escape(t.Package), term.Escape(t.Name))
		if t.Outcome == "pass" {
			continue
		}
		fmt.Fprintf(w, "      %s:%d\n", term.Escape(t.File), t.Row)
		if t.FailedAt != "" {
			fmt.Fprintf(w, "      failed at line %d: %s\n", t.FailedRow, term.Escape(t.FailedAt))
		}
		if t.Error != "" {
			fmt.Fprintf(w, "      %s\n", term.Escape(t.Error))
		}
		for _, line := range t.Trace {
			fmt.Fprintf(w, "        %s\n", term.Escape(line))
		}
	}
	if len(rep.Tests) == 0 {
		fmt.Fprintln(w, "no tests: a policy's tests are rules test_… in files *_test.rego")
		return
	}
	fmt.Fprintf(w, "%d passed, %d failed, %d with errors, %d skipped; %.0f%% of the policy's lines covered\n",
		rep.Passed, rep.Failed, rep.Errored, rep.Skipped, rep.CoveragePercent)
}

func (a *app) policyEvalCommand() *cobra.Command {
	var failMode string
	cmd := &cobra.Command{
		Use:   "eval DIR < EVENTS",
		Short: "Say what a policy decides on events; carry out nothing",
		Long: `Read events from stdin, one JSON object a line, and say what a policy decides on
each. Nothing is carried out. A line that is no event is named, and the status
is 3 then.`,
		Example: `  vantage scan web-1 --events found.ndjson
  vantage policy eval my-policy/ < found.ndjson
  vantage policy eval default --json < found.ndjson | jq .responses`,
		Args: onePolicy,
		RunE: func(cmd *cobra.Command, args []string) error {
			mode, err := policy.ParseFailMode(failMode)
			if err != nil {
				return err
			}
			rep, err := policy.Eval(cmd.Context(), policySource(args[0]), stdinReader{cmd.Context(), a.stdin}, policy.RunOptions{FailMode: mode}, a.printEvalResult)
			if err != nil {
				return err
			}
			if !a.json {
				fmt.Fprintf(a.stdout, "%d events, %d decisions failed\n", rep.Input.Events, rep.Errors)
			}
			return a.badLines(rep.Input)
		},
	}
	cmd.Flags().StringVar(&failMode, "fail-mode", string(policy.FailAlert), "what is decided when policy fails: alert, pause, ignore")
	completeFlag(cmd, "fail-mode", failModes()...)
	return cmd
}

func (a *app) printEvalResult(r *policy.EvalResult) error {
	if a.json {
		return a.printJSON(r)
	}
	_, err := fmt.Fprintf(a.stdout, "%d  %s  %s  %s: %s\n", r.Line, term.Escape(string(r.Kind)), term.Escape(r.VM), r.Verdict, outcomeText(r.Outcome))
	return err
}

// outcomeText writes a decision as people read it, escaped.
func outcomeText(o policy.Outcome) string {
	var parts []string
	for _, r := range o.Responses {
		parts = append(parts, fmt.Sprintf("%s (%s: %s)", r.Name, r.Severity, r.Reason))
	}
	if len(parts) == 0 {
		parts = append(parts, "nothing to do")
	}
	if o.Error != "" {
		parts = append(parts, "policy failed: "+o.Error)
	}
	return term.Escape(strings.Join(parts, ", "))
}

// badLines reports lines of the input that were no events.
func (a *app) badLines(in policy.Input) error {
	if in.BadLines == 0 {
		return nil
	}
	if a.json {
		if err := a.printJSONErr(in); err != nil {
			return err
		}
		return &exitError{code: exitIncomplete}
	}
	for _, l := range in.LineErrors {
		fmt.Fprintf(a.stderr, "vantage: input line %d: %s\n", l.Line, term.Escape(l.Error))
	}
	return &exitError{code: exitIncomplete, err: fmt.Errorf("%d lines of the input are no events and were left out", in.BadLines)}
}

func (a *app) policyReplayCommand() *cobra.Command {
	var against string
	cmd := &cobra.Command{
		Use:   "replay DIR EVENTS --against OTHERDIR",
		Short: "Say which decisions another policy would change",
		Long: `Decide on recorded events twice, by the policy DIR and by OTHERDIR, and say which
decisions differ. EVENTS is a file of events, one JSON object a line, or - for
stdin. A decision depends on the event and the policy only: the time that rules
see (input.now) is the event's. Status 1 when a decision would change.`,
		Example: `  vantage policy replay default found.ndjson --against my-policy/`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("want a policy and a file of events, got %d arguments", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if against == "" {
				return errors.New("--against OTHERDIR is missing: the policy to compare with")
			}
			in, err := a.openInput(cmd.Context(), args[1])
			if err != nil {
				return err
			}
			defer in.Close()
			rep, err := policy.Replay(cmd.Context(), policySource(args[0]), policySource(against), in, policy.RunOptions{}, a.printChange)
			if err != nil {
				return err
			}
			if a.json {
				rep.Changes = nil // each has been printed
				if err := a.printJSON(struct {
					Summary bool `json:"summary"`
					*policy.ReplayReport
				}{true, rep}); err != nil {
					return err
				}
			} else {
				fmt.Fprintf(a.stdout, "%d events: %d decisions would change, %d would not\n", rep.Input.Events, rep.Changed, rep.Unchanged)
			}
			if err := a.badLines(rep.Input); err != nil {
				return err
			}
			if rep.Changed > 0 {
				return &exitError{code: exitFound}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&against, "against", "", "the policy to compare with")
	return cmd
}

func (a *app) printChange(c *policy.Change) error {
	if a.json {
		return a.printJSON(c)
	}
	_, err := fmt.Fprintf(a.stdout, "%d  %s  %s\n  - %s: %s\n  + %s: %s\n", c.Line, term.Escape(string(c.Kind)), term.Escape(c.VM),
		c.Before.Verdict, outcomeText(c.Before), c.After.Verdict, outcomeText(c.After))
	return err
}

// openInput opens a file, or stdin for "-".
func (a *app) openInput(ctx context.Context, name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(stdinReader{ctx, a.stdin}), nil
	}
	return openFile(name)
}
