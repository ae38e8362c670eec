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

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

type retireFlags struct {
	etcdFlags          // which etcd is read now; its own --snapshot is not there
	evidence  string   // file of a report
	named     []string // snapshots
	settle    time.Duration
	yes       bool
	dryRun    bool
}

func (c *command) keysRetire() *cobra.Command {
	f := &retireFlags{}
	cmd := c.withConfig(c.withOutput(&cobra.Command{
		Use:   "retire KEYID",
		Short: "Destroy a key that nothing needs: a pending one, or with evidence one that was current",
		Long: `Destroys a key on every token that holds it. Destruction is for ever, so whatever is unclear is a refusal, and all
reasons are told. A pending key is withdrawn before it becomes current. A key that was current wants evidence that
nothing needs it: a report of etcd from a file, another that this command makes now, at least --settle apart, and
every snapshot that is still to be restorable. The current key is never destroyed.`,
		Example: `  hsm-kms keys list
  hsm-kms keys retire kube-secrets/hk1-019ab3c4d5e6-0011223344556677-89abcdef/0123456789abcdef --yes
  hsm-kms etcd report -o json > report.json    # a day before
  hsm-kms keys retire KEYID --evidence report.json --snapshot backup.db --dry-run
  hsm-kms keys retire KEYID --evidence report.json --snapshot backup.db`,
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
	flags.BoolVar(&f.dryRun, "dry-run", false, "check everything and destroy nothing; exit 0 if it would be done")
	flags.BoolVar(&f.yes, "yes", false, "do not ask on the terminal")
	return cmd
}

// retirement is one run of the command.
type retirement struct {
	*command
	flags     *retireFlags
	cfg       *config.Config
	in        *tokensInUse
	id        envelope.KeyID
	version   envelope.Version // as last read from the tokens; zero: they do not hold it
	successor time.Time        // when the key that followed became current; zero: unknown
	others    []string         // key_ids that the tokens hold beside it
	file      *gate.File       // of --evidence; nil: not read yet
	own       *evidence.Report // made now
	snapshots []*evidence.Report
	said      retiredJSON
}

func (c *command) runRetire(ctx context.Context, in io.Reader, f *retireFlags, keyID string) error {
	id, err := envelope.ParseKeyID(keyID)
	if err != nil {
		return hint.Wrap(err, "copy the key_id from: hsm-kms keys list")
	}
	signal.Ignore(unix.SIGPIPE) // a reader that goes away must be an error, not an end in the middle of a destruction
	if f.settle < 0 {
		return fmt.Errorf("--settle %s is negative", f.settle)
	}
	cfg, err := c.load()
	if err != nil {
		return err
	}
	// A key that is refused for a rehearsal is still one that can be retired, and is judged as if it were served.
	served := *cfg
	served.RefuseKeys = slices.DeleteFunc(slices.Clone(cfg.RefuseKeys), func(refused string) bool { return refused == keyID })
	tokens, err := c.connectAll(ctx, &served)
	if err != nil {
		return err
	}
	defer tokens.stop()
	r := &retirement{command: c, flags: f, cfg: cfg, in: tokens, id: id}
	return r.run(ctx, in)
}

func (r *retirement) run(ctx context.Context, in io.Reader) error {
	if err := r.judge(ctx, true); err != nil {
		return err
	}
	if err := r.refused(); err != nil {
		return err
	}
	if r.version.ID.IsZero() {
		return r.complete()
	}
	if err := r.printChecks(); err != nil {
		return err
	}
	if r.flags.dryRun {
		return r.done("Nothing was destroyed: a dry run. %s would be destroyed on %s.", r.id, strings.Join(r.version.Tokens, ", "))
	}
	if err := r.confirm(in); err != nil {
		return r.against(err)
	}
	unlock, err := lockKeys(r.cfg.StateDir)
	if err != nil {
		return r.against(err)
	}
	defer unlock()
	// Whoever was asked may have taken hours to answer: the key may be current by now, and etcd another.
	if err := r.in.ring.Refresh(ctx); err != nil {
		return err
	}
	if err := r.judge(ctx, !r.flags.yes); err != nil {
		return err
	}
	if err := r.refused(); err != nil {
		return err
	}
	if err := r.destroy(ctx); err != nil {
		return errors.Join(r.jsonIfWanted(), err)
	}
	return r.done("Destroyed %s on %s.", r.id, strings.Join(r.said.Destroyed, ", "))
}

// judge collects everything that speaks against the destruction in said.Refusals. readEtcd: etcd is read, again if it
// was read before. An error means that it could not be judged.
func (r *retirement) judge(ctx context.Context, readEtcd bool) error {
	r.said = retiredJSON{Destroyed: []string{}, DryRun: r.flags.dryRun, Refusals: []gate.Refusal{}, Warnings: []string{}}
	if err := r.judgeRing(ctx); err != nil {
		return err
	}
	r.said.keyJSON = keyJSON{KeyID: r.id.String(), Ring: r.id.Ring, Fingerprint: r.id.FingerprintHex(), Tokens: []string{}}
	if r.version.ID.IsZero() {
		return r.judgeGone()
	}
	r.said.keyJSON = keyOf(r.version)
	if r.version.State != envelope.Retained {
		return nil
	}
	return r.judgeEvidence(ctx, readEtcd)
}

// refuse notes a reason against the destruction. The error has its advice.
func (r *retirement) refuse(err error) {
	r.said.Refusals = append(r.said.Refusals, gate.Refusal{Reason: err.Error(), Hint: advise(err)})
}

// refused prints the refusals, if there are any, and is then the error that the command ends with.
func (r *retirement) refused() error {
	if len(r.said.Refusals) == 0 {
		return nil
	}
	if err := errors.Join(r.printChecks(), r.jsonIfWanted()); err != nil {
		return err
	}
	first := r.said.Refusals[0]
	if len(r.said.Refusals) == 1 {
		return finding(hint.Wrap(errors.New(first.Reason), first.Hint))
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s is not destroyed, for %d reasons:", r.id, len(r.said.Refusals))
	for _, refusal := range r.said.Refusals {
		fmt.Fprintf(&text, "\n  %s", refusal.Reason)
		if refusal.Hint != "" && refusal.Hint != first.Hint {
			fmt.Fprintf(&text, "\n    (%s)", refusal.Hint)
		}
	}
	return finding(hint.Wrap(errors.New(text.String()), first.Hint))
}

// against ends the command with one reason that came up last. Another error than a finding stays what it is.
func (r *retirement) against(err error) error {
	if !errors.Is(err, errFinding) {
		return err
	}
	r.refuse(err)
	return errors.Join(r.jsonIfWanted(), err)
}

// confirm asks for the fingerprint on a terminal. Without one, --yes must say it.
func (r *retirement) confirm(in io.Reader) error {
	if r.flags.yes {
		return nil
	}
	v := r.version
	file, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return finding(hint.Wrap(errors.New("destroying a key needs a confirmation, and there is no terminal to ask on"), "say it with --yes"))
	}
	fmt.Fprintf(r.errOut, "This destroys %s on %s for ever.\nType its fingerprint to go on: ", v.ID, strings.Join(v.Tokens, ", "))
	line, err := bufio.NewReader(io.LimitReader(in, 256)).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != v.ID.FingerprintHex() {
		return finding(hint.Wrap(errors.New("not confirmed; nothing was destroyed"), "type "+v.ID.FingerprintHex()+", or say --yes"))
	}
	return nil
}
