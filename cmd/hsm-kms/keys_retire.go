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

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/retire"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/sources"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
	"github.com/hsm-kms/hsm-kms/internal/duration"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

type retireFlags struct {
	etcdFlags // which etcd is read now; its own --snapshot is not there
	options   retire.Options
	yes       bool
}

func (c *command) keysRetire() *cobra.Command {
	f := &retireFlags{}
	cmd := c.withConfig(c.withRing(c.withOutput(&cobra.Command{
		Use:   "retire KEYID",
		Short: "Destroy a key that nothing needs: a pending one, or with evidence one that was current",
		Long: `Destroys a key on every token that holds it, for good. Anything that is unclear is a refusal, and all reasons are reported
at once. A key that was current requires evidence that nothing needs it: a report of etcd from a file, another that this
command makes now, at least --settle apart, and every snapshot that must stay restorable. A pending key is withdrawn
before it becomes current, if nothing in etcd is under it. The current key is never destroyed.

With --ring the key belongs to a read ring whose configuration has retiring: true, and --evidence is the JSON of etcd migrate,
which has proven for every API server that it writes under keyRing. Then the last key of the ring can be destroyed too.

The command makes a plan, shows it, and carries out exactly that plan. --dry-run -o json has the plan's hash. With
--plan HASH the command continues only if the plan is still the same. It exits 2 when the outcome on a token is unknown;
run it again then.`,
		Example: `  hsm-kms keys list
  hsm-kms keys retire kube-secrets/hk1-019ab3c4d5e6-0011223344556677-89abcdef/0123456789abcdef
  hsm-kms etcd report -o json > report.json    # a day before
  hsm-kms keys retire KEYID --evidence report.json --snapshot backup.db --dry-run -o json
  hsm-kms keys retire KEYID --evidence report.json --snapshot backup.db --plan HASH --yes`,
		Args: needs("KEYID", "hsm-kms keys list shows the keys", cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.runRetire(cmd.Context(), cmd.InOrStdin(), f, args[0])
		},
	})))
	f.addLive(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.options.EvidenceFile, "evidence", "", "`file` with the JSON of hsm-kms etcd report -o json, or with --ring of etcd migrate -o json; needed for a key that was current")
	flags.StringArrayVar(&f.options.Snapshots, "snapshot", nil, "a snapshot `file` that must not need the key; repeatable")
	duration.Var(flags, &f.options.Settle, "settle", gate.DefaultSettle, "how long ago the report of --evidence must have been made at least")
	flags.BoolVar(&f.options.Accepted.SoleCluster, "sole-cluster", false, "vouch that no other cluster uses the ring, if that cannot be compared with etcd; recorded")
	flags.StringArrayVar(&f.options.Accepted.Unreadable, "accept-unreadable", nil, "vouch that nothing in this unreadable `RANGE` of etcd is under the key; recorded; repeatable")
	flags.BoolVar(&f.options.Accepted.Unidentified, "accept-unidentified-store", false, "vouch that the store behind the etcd API (such as kine) is the right one and was not restored; recorded")
	flags.StringArrayVar(&f.options.Accepted.TokensLost, "token-lost", nil, "vouch that the token of this `name` exists no longer; recorded; repeatable")
	flags.BoolVar(&f.options.NoEtcd, "no-etcd", false, "for a pending key: do not read etcd, and vouch that nothing is under the key; recorded")
	flags.StringVar(&f.options.Plan, "plan", "", "go on only if the plan has this `HASH`, which --dry-run -o json printed")
	flags.BoolVar(&f.options.DryRun, "dry-run", false, "check everything and destroy nothing; exit 0 if it would be done")
	flags.BoolVar(&f.yes, "yes", false, "do not ask on the terminal")
	return cmd
}

func (c *command) runRetire(ctx context.Context, in io.Reader, f *retireFlags, keyID string) (err error) {
	o := f.options
	if o.KeyID, err = envelope.ParseKeyID(keyID); err != nil {
		return hint.Wrap(err, "copy the key_id from: hsm-kms keys list")
	}
	signal.Ignore(unix.SIGPIPE) // a reader that goes away must be an error, not an end in the middle of a destruction
	switch {
	case o.Settle < 0:
		return fmt.Errorf("--settle %s is negative", o.Settle)
	case o.Plan != "" && !retire.IsHash(o.Plan):
		return hint.Wrap(errors.New("--plan is not the hash of a plan: 64 hex digits"), "copy it from: hsm-kms keys retire KEYID --dry-run -o json")
	}
	a, err := c.load()
	if err != nil {
		return err
	}
	if ring := o.KeyID.Ring; ring != a.Config.KeyRing && slices.Contains(a.File.RingNames(), ring) {
		return app.Finding(hint.Wrap(fmt.Errorf("%s is a key of the ring %s, and this is about the ring %s", keyID, ring, a.Config.KeyRing), "add: --ring "+ring))
	}
	o.Report = func(ctx context.Context, snapshots []string) (*evidence.Report, error) {
		read := f.etcdFlags
		if snapshots != nil {
			read = etcdFlags{sources.Options{Snapshots: snapshots, Prefixes: f.Prefixes}}
		}
		return c.buildReport(ctx, &reportFlags{etcdFlags: read}, evidence.ReportOptions{})
	}
	o.Show = func(r *retire.Result) error { return c.printChecks(o, r) }
	o.Confirm = func(plan *retire.Plan) error { return c.confirm(in, f.yes, plan) }
	done, err := retire.Run(ctx, a, o)
	if done == nil {
		return err
	}
	var printErr error
	if c.structured() {
		printErr = c.json(retiredOf(o, done))
	} else if err == nil {
		printErr = c.printRetired(o, done)
	}
	if destroyed := done.Destroyed(); printErr != nil && err == nil && len(destroyed) > 0 { // the reader of stdout has gone: at least the error must say it
		return hint.Wrap(fmt.Errorf("%s was destroyed on %s; saying so: %w", done.Plan.KeyID, strings.Join(destroyed, ", "), printErr), "nothing is left to do; see it with: hsm-kms keys list")
	}
	return errors.Join(printErr, err)
}

// confirm asks for the fingerprint on a terminal. Without one, --yes must say it.
func (c *command) confirm(in io.Reader, yes bool, plan *retire.Plan) error {
	if yes {
		return nil
	}
	v := plan.Target
	file, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return app.Finding(hint.Wrap(errors.New("destroying a key needs a confirmation, and there is no terminal to ask on"), "say it with --yes"))
	}
	fmt.Fprintf(c.errOut, "This destroys %s on %s for good.\nType its fingerprint to go on: ", v.ID, strings.Join(v.Tokens, ", "))
	line, err := bufio.NewReader(io.LimitReader(in, 256)).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != v.ID.FingerprintHex() {
		return app.Finding(hint.Wrap(errors.New("not confirmed; nothing was destroyed"), "type "+v.ID.FingerprintHex()+", or say --yes"))
	}
	return nil
}
