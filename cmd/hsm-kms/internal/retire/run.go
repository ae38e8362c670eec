package retire

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin/audit"
)

// Options say which key is to be destroyed, and on which grounds.
type Options struct {
	KeyID        envelope.KeyID
	EvidenceFile string   // of a report; empty: none
	Snapshots    []string // files
	Settle       time.Duration
	Accepted     gate.Accepted
	NoEtcd       bool   // of a pending key: etcd is not read
	Plan         string // the hash of the only plan that may be carried out; empty: any
	DryRun       bool

	// Report reads etcd, or the snapshots that are given.
	Report func(ctx context.Context, snapshots []string) (*evidence.Report, error)
	// Show shows a plan before anything is asked or destroyed, and Confirm asks whether to go on; its error is why not.
	Show    func(*Result) error
	Confirm func(*Plan) error
}

// Result is what was found out and done. Nothing was destroyed unless an outcome says so. A plan without a target, and without
// refusals, is of a destruction that was begun before, and is complete.
type Result struct {
	Plan     *Plan
	Facts    Facts
	Outcomes []Outcome // of each token, once something was tried
}

// Destroyed are the tokens on which the key was destroyed now.
func (r *Result) Destroyed() []string { return With(r.Outcomes, hsm.Destroyed) }

// Run makes a plan, shows it, and carries out exactly that plan. A result also comes with a finding, and with an error of the
// destruction; without one nothing was found out and nothing was done.
func Run(ctx context.Context, a *app.Context, o Options) (*Result, error) {
	// A key that is refused for a rehearsal is still one that can be retired, and is judged as if it were served.
	served, serving := *a.Config, *a
	served.RefuseKeys = slices.DeleteFunc(slices.Clone(a.Config.RefuseKeys), func(refused string) bool { return refused == o.KeyID.String() })
	serving.Config = &served
	if err := withoutLost(ctx, &serving, o.Accepted.TokensLost); err != nil {
		return nil, err
	}
	in, err := serving.Connect(ctx)
	if err != nil {
		return nil, err
	}
	defer in.Stop()
	r := &retirement{Options: o, app: a, in: in}
	if a.Read != nil {
		written, err := a.ForRing("")
		if err != nil {
			return nil, err
		}
		if r.written, err = written.Connect(ctx); err != nil {
			return nil, fmt.Errorf("reading the ring %s, which is written under: %w", written.Config.KeyRing, err)
		}
		defer r.written.Stop()
	}
	first, err := r.judge(ctx, Facts{})
	if err != nil {
		return nil, err
	}
	if err := r.refused(first); err != nil {
		return shown(first, err)
	}
	if first.Plan.Target.ID.IsZero() {
		return r.complete(first)
	}
	if err := o.Show(first); err != nil || o.DryRun {
		return shown(first, err)
	}
	if err := o.Confirm(first.Plan); err != nil {
		return against(first, err)
	}
	unlock, err := app.LockKeys(a.Config.StateDir)
	if err != nil {
		return against(first, err)
	}
	defer unlock()
	again, err := r.judgeAgain(ctx, first)
	if err != nil {
		return nil, err
	}
	if err := r.refused(again); err != nil {
		return shown(again, err)
	}
	again.Outcomes, err = again.Plan.Execute(a.Acting(ctx), in.Set, r.trail(), Grounds{
		Settle: again.Plan.Settled, Evidence: again.Facts.Evidence, Etcd: again.Facts.Etcd, Snapshots: again.Facts.Snapshots,
	})
	return again, err
}

// retirement is one run. Nothing in it changes.
type retirement struct {
	Options
	app     *app.Context
	in      *app.Tokens
	written *app.Tokens // of the ring that is written under, if that is another one
}

// withoutLost takes the tokens that exist no longer out of the configuration of this run, unless one of them can be used.
func withoutLost(ctx context.Context, a *app.Context, lost []string) error {
	if len(lost) == 0 {
		return nil
	}
	for _, name := range lost {
		if !slices.Contains(a.Config.TokenNames(), name) {
			return hint.Wrap(fmt.Errorf("--token-lost %q names no token of the ring %s", name, a.Config.KeyRing), "the tokens are: "+strings.Join(a.Config.TokenNames(), ", "))
		}
	}
	in, err := a.Connect(ctx)
	if err != nil {
		return fmt.Errorf("no token of the ring %s can be used, and a key is destroyed on one that can: %w", a.Config.KeyRing, err)
	}
	defer in.Stop()
	for i, name := range a.Config.TokenNames() {
		if slices.Contains(lost, name) && in.Problems[i] == nil {
			return app.Finding(hint.Wrap(fmt.Errorf("the token %s is not lost: it answers", name), "leave out --token-lost "+name+": the key is destroyed on it too"))
		}
	}
	left := *a.Config
	left.Tokens = slices.DeleteFunc(slices.Clone(a.Config.Tokens), func(t config.Token) bool { return slices.Contains(lost, t.Name) })
	a.Config = &left
	return nil
}

// judge gathers what is to be known and makes the plan. An error means that it could not be judged.
func (r *retirement) judge(ctx context.Context, earlier Facts) (*Result, error) {
	facts, err := r.gather(ctx, earlier)
	if err != nil {
		return nil, err
	}
	cfg := r.app.Config
	request := Request{
		KeyID: r.KeyID, EvidenceFile: r.EvidenceFile, Named: len(r.Snapshots), Settle: r.Settle, Accepted: r.Accepted, NoEtcd: r.NoEtcd,
		AuditPath: cfg.Audit.Path, Rehearsed: slices.Contains(cfg.RefuseKeys, r.KeyID.String()), RefreshInterval: cfg.RefreshInterval.Std(),
		OutageHold: cfg.OutageHold.Std(),
	}
	if r.app.Read != nil {
		request.WrittenRing, request.Retiring = r.app.File.KeyRing, r.app.Read.Retiring
	}
	plan := Judge(request, facts)
	if r.Plan != "" {
		plan.Refusals = append(plan.Refusals, plan.Check(r.Plan)...)
	}
	return &Result{Plan: plan, Facts: facts}, nil
}

// judgeAgain is under the lock: while somebody was asked the key may have become current, and etcd another. It must be
// the plan that was shown.
func (r *retirement) judgeAgain(ctx context.Context, first *Result) (*Result, error) {
	again, err := r.judge(ctx, first.Facts)
	if err != nil {
		return nil, err
	}
	if differs := again.Plan.Differs(first.Plan); differs != "" && len(again.Plan.Refusals) == 0 {
		again.Plan.Refusals = append(again.Plan.Refusals, gate.Refusal{
			Reason: "the plan changed while it was about to be carried out: " + differs, Hint: "run the command again, and look at what it shows",
		})
	}
	return again, nil
}

// complete ends a destruction that was killed after the last token, before its end was on record.
func (r *retirement) complete(found *Result) (*Result, error) {
	if r.DryRun {
		return found, nil
	}
	unlock, err := app.LockKeys(r.app.Config.StateDir)
	if err != nil {
		return against(found, err)
	}
	defer unlock()
	if err := found.Plan.Complete(r.trail()); err != nil {
		return nil, err
	}
	return found, nil
}

func (r *retirement) trail() Trail {
	t := Trail{Peer: app.Ourselves(), User: app.UserName()}
	if cfg := r.app.Config; cfg.Audit.Path != "" {
		t.Open = func() (*audit.Writer, error) { return app.OpenTrailBeside(cfg, TrailName) }
	}
	return t
}

// refused shows a plan with refusals, and is then the error that the command ends with.
func (r *retirement) refused(found *Result) error {
	p := found.Plan
	if len(p.Refusals) == 0 {
		return nil
	}
	if err := r.Show(found); err != nil {
		return err
	}
	first := p.Refusals[0]
	if len(p.Refusals) == 1 {
		return app.Finding(hint.Wrap(errors.New(first.Reason), first.Hint))
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s is not destroyed, for %d reasons:", p.KeyID, len(p.Refusals))
	for _, refusal := range p.Refusals {
		fmt.Fprintf(&text, "\n  %s", refusal.Reason)
		if refusal.Hint != "" && refusal.Hint != first.Hint {
			fmt.Fprintf(&text, "\n    (%s)", refusal.Hint)
		}
	}
	return app.Finding(hint.Wrap(errors.New(text.String()), first.Hint))
}

// shown ends a run after its plan was shown; one that could not be shown has no result.
func shown(found *Result, err error) (*Result, error) {
	if err != nil && !app.IsFinding(err) {
		return nil, err
	}
	return found, err
}

// against ends a run with one reason that came up last. Another error than a finding stays what it is.
func against(found *Result, err error) (*Result, error) {
	if !app.IsFinding(err) {
		return nil, err
	}
	found.Plan.Refusals = append(found.Plan.Refusals, gate.Refusal{Reason: err.Error(), Hint: app.Hint(err)})
	return found, err
}
