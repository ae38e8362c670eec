package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/retire"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin/audit"
)

type retireFlags struct {
	etcdFlags          // which etcd is read now; its own --snapshot is not there
	evidence  string   // file of a report
	named     []string // snapshots
	settle    time.Duration
	accepted  gate.Accepted
	noEtcd    bool
	plan      string // hash
	yes       bool
	dryRun    bool
}

func (c *command) keysRetire() *cobra.Command {
	f := &retireFlags{}
	cmd := c.withConfig(c.withOutput(&cobra.Command{
		Use:   "retire KEYID",
		Short: "Destroy a key that nothing needs: a pending one, or with evidence one that was current",
		Long: `Destroys a key on every token that holds it, for good. Whatever is unclear is a refusal, and all reasons are told at
once. A key that was current requires evidence that nothing needs it: a report of etcd from a file, another that this
command makes now, at least --settle apart, and every snapshot that is still to be restorable. A pending key is
withdrawn before it becomes current, if nothing in etcd is under it. The current key is never destroyed.

The command makes a plan, shows it, and carries out exactly that plan. --dry-run -o json has the plan's hash; with
--plan HASH the command goes on only if the plan is still the same. It exits 2 when what became of the key on a token
is unknown; run it again then.`,
		Example: `  hsm-kms keys list
  hsm-kms keys retire kube-secrets/hk1-019ab3c4d5e6-0011223344556677-89abcdef/0123456789abcdef
  hsm-kms etcd report -o json > report.json    # a day before
  hsm-kms keys retire KEYID --evidence report.json --snapshot backup.db --dry-run -o json
  hsm-kms keys retire KEYID --evidence report.json --snapshot backup.db --plan HASH --yes`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.runRetire(cmd.Context(), cmd.InOrStdin(), f, args[0])
		},
	}))
	f.addLive(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.evidence, "evidence", "", "`file` with the JSON of: hsm-kms etcd report -o json; needed for a key that was current")
	flags.StringArrayVar(&f.named, "snapshot", nil, "a snapshot `file` that must not need the key; may be given again")
	flags.DurationVar(&f.settle, "settle", gate.DefaultSettle, "how long ago the report of --evidence must have been made at least")
	flags.BoolVar(&f.accepted.SoleCluster, "sole-cluster", false, "you know that no other cluster uses the ring, where that cannot be compared with etcd; recorded")
	flags.StringArrayVar(&f.accepted.Unreadable, "accept-unreadable", nil, "you know that nothing in this `RANGE` of etcd, which could not be read, is under the key; recorded; may be given again")
	flags.BoolVar(&f.accepted.Unidentified, "accept-unidentified-store", false, "you know that the store behind the etcd API (such as kine) is the right one and was not restored; recorded")
	flags.BoolVar(&f.noEtcd, "no-etcd", false, "of a pending key: do not read etcd; you know that nothing is under the key; recorded")
	flags.StringVar(&f.plan, "plan", "", "go on only if the plan has this `HASH`, which --dry-run -o json printed")
	flags.BoolVar(&f.dryRun, "dry-run", false, "check everything and destroy nothing; exit 0 if it would be done")
	flags.BoolVar(&f.yes, "yes", false, "do not ask on the terminal")
	return cmd
}

// retirement is one run of the command. It gathers facts, and has them judged; only said changes meanwhile.
type retirement struct {
	*command
	flags   *retireFlags
	cfg     *config.Config
	in      *app.Tokens
	request retire.Request
	files   retireFiles // that were named, read once
	said    retiredJSON
}

func (c *command) runRetire(ctx context.Context, in io.Reader, f *retireFlags, keyID string) error {
	id, err := envelope.ParseKeyID(keyID)
	if err != nil {
		return hint.Wrap(err, "copy the key_id from: hsm-kms keys list")
	}
	signal.Ignore(unix.SIGPIPE) // a reader that goes away must be an error, not an end in the middle of a destruction
	switch {
	case f.settle < 0:
		return fmt.Errorf("--settle %s is negative", f.settle)
	case f.plan != "" && !retire.IsHash(f.plan):
		return hint.Wrap(errors.New("--plan is not the hash of a plan: 64 hex digits"), "copy it from: hsm-kms keys retire KEYID --dry-run -o json")
	}
	a, err := c.load()
	if err != nil {
		return err
	}
	cfg := a.Config
	// A key that is refused for a rehearsal is still one that can be retired, and is judged as if it were served.
	served := *cfg
	served.RefuseKeys = slices.DeleteFunc(slices.Clone(cfg.RefuseKeys), func(refused string) bool { return refused == keyID })
	all := *a
	all.Config = &served
	tokens, err := all.Connect(ctx)
	if err != nil {
		return err
	}
	defer tokens.Stop()
	r := &retirement{command: c, flags: f, cfg: cfg, in: tokens, request: retire.Request{
		KeyID: id, EvidenceFile: f.evidence, Named: len(f.named), Settle: f.settle, Accepted: f.accepted, NoEtcd: f.noEtcd,
		AuditPath: cfg.Audit.Path, Rehearsed: slices.Contains(cfg.RefuseKeys, keyID), RefreshInterval: cfg.RefreshInterval.Std(), Advise: app.Hint,
	}}
	return r.run(ctx, in)
}

func (r *retirement) run(ctx context.Context, in io.Reader) error {
	plan, _, err := r.judge(ctx)
	if err != nil {
		return err
	}
	if err := r.refused(plan); err != nil {
		return err
	}
	if plan.Target.ID.IsZero() {
		return r.complete(plan)
	}
	if err := r.printChecks(plan); err != nil {
		return err
	}
	if r.flags.dryRun {
		return r.done(plan, "Nothing was destroyed: a dry run. %s would be destroyed on %s.\nThe plan is %s: with --plan and this hash, exactly that is done.",
			plan.KeyID, strings.Join(plan.Target.Tokens, ", "), plan.Hash())
	}
	if err := r.confirm(in, plan); err != nil {
		return r.against(err)
	}
	unlock, err := app.LockKeys(r.cfg.StateDir)
	if err != nil {
		return r.against(err)
	}
	defer unlock()
	again, facts, err := r.judgeAgain(ctx, plan)
	if err != nil {
		return err
	}
	if err := r.refused(again); err != nil {
		return err
	}
	act, stop := r.process.Acting(ctx)
	defer stop()
	outcomes, err := again.Execute(act, r.in.Set, r.trail(), retire.Grounds{
		Settle: r.flags.settle, Evidence: facts.Evidence, Etcd: facts.Etcd, Snapshots: facts.Snapshots,
	})
	r.said.Outcomes, r.said.Destroyed = outcomes, retire.With(outcomes, hsm.Destroyed)
	if err != nil {
		return errors.Join(r.jsonIfWanted(), err)
	}
	return r.done(again, "Destroyed %s on %s.", again.KeyID, strings.Join(r.said.Destroyed, ", "))
}

// judge gathers what is to be known and makes the plan. An error means that it could not be judged.
func (r *retirement) judge(ctx context.Context) (*retire.Plan, retire.Facts, error) {
	facts, err := r.gather(ctx)
	if err != nil {
		return nil, facts, err
	}
	plan := retire.Judge(r.request, facts)
	if r.flags.plan != "" {
		plan.Refusals = append(plan.Refusals, plan.Check(r.flags.plan)...)
	}
	r.said = r.saidOf(plan, facts)
	return plan, facts, nil
}

// judgeAgain is under the lock: while somebody was asked the key may have become current, and etcd another. It must be
// the plan that was shown.
func (r *retirement) judgeAgain(ctx context.Context, shown *retire.Plan) (*retire.Plan, retire.Facts, error) {
	plan, facts, err := r.judge(ctx)
	if err != nil {
		return nil, facts, err
	}
	if differs := plan.Differs(shown); differs != "" && len(plan.Refusals) == 0 {
		plan.Refusals = append(plan.Refusals, gate.Refusal{
			Reason: "the plan changed while it was about to be carried out: " + differs, Hint: "run the command again, and look at what it shows",
		})
		r.said.Refusals = plan.Refusals
	}
	return plan, facts, nil
}

// complete ends a destruction that was killed after the last token, before its end was on record.
func (r *retirement) complete(plan *retire.Plan) error {
	const text = "%s is on no token. Its destruction was begun before, and is complete."
	if r.flags.dryRun {
		return r.done(plan, text, plan.KeyID)
	}
	unlock, err := app.LockKeys(r.cfg.StateDir)
	if err != nil {
		return r.against(err)
	}
	defer unlock()
	if err := plan.Complete(r.trail()); err != nil {
		return err
	}
	return r.done(plan, text, plan.KeyID)
}

func (r *retirement) trail() retire.Trail {
	t := retire.Trail{Peer: app.Ourselves(), User: app.UserName()}
	if r.cfg.Audit.Path != "" {
		t.Open = func() (*audit.Writer, error) { return app.OpenTrailBeside(r.cfg, retire.TrailName) }
	}
	return t
}

// confirm asks for the fingerprint on a terminal. Without one, --yes must say it.
func (r *retirement) confirm(in io.Reader, plan *retire.Plan) error {
	if r.flags.yes {
		return nil
	}
	v := plan.Target
	file, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return app.Finding(hint.Wrap(errors.New("destroying a key needs a confirmation, and there is no terminal to ask on"), "say it with --yes"))
	}
	fmt.Fprintf(r.errOut, "This destroys %s on %s for good.\nType its fingerprint to go on: ", v.ID, strings.Join(v.Tokens, ", "))
	line, err := bufio.NewReader(io.LimitReader(in, 256)).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != v.ID.FingerprintHex() {
		return app.Finding(hint.Wrap(errors.New("not confirmed; nothing was destroyed"), "type "+v.ID.FingerprintHex()+", or say --yes"))
	}
	return nil
}
