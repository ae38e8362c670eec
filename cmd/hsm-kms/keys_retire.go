package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc/codes"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin/audit"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
)

// withdrawMargin is the least time before its activation at which a pending key may still be withdrawn: later,
// a node whose clock is ahead may have sealed under it.
const withdrawMargin = 5 * time.Minute

func (c *command) keysRetire() *cobra.Command {
	var yes bool
	cmd := c.withConfig(c.withOutput(&cobra.Command{
		Use:   "retire KEYID",
		Short: "Destroy a key that nothing needs: a pending one, before it becomes current",
		Long: `Withdraws a pending key from every token that holds it. Destruction is for ever, so whatever is unclear is a
refusal: a key that is or was current, a token that cannot be reached, an activation that is near.`,
		Example: `  hsm-kms keys list
  hsm-kms keys retire kube-secrets/hk1-019ab3c4d5e6-0011223344556677-89abcdef/0123456789abcdef --yes`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.retire(cmd.Context(), cmd.InOrStdin(), args[0], yes)
		},
	}))
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask on the terminal")
	return cmd
}

func (c *command) retire(ctx context.Context, in io.Reader, keyID string, yes bool) error {
	id, err := envelope.ParseKeyID(keyID)
	if err != nil {
		return hint.Wrap(err, "copy the key_id from: hsm-kms keys list")
	}
	cfg, err := c.load()
	if err != nil {
		return err
	}
	all := *cfg
	all.RefuseKeys = nil // a key that is refused for a rehearsal is still one that can be retired
	tokens, err := c.connectAll(ctx, &all)
	if err != nil {
		return err
	}
	defer tokens.stop()
	version, err := mayRetire(ctx, cfg, tokens, id)
	if err != nil {
		return err
	}
	if err := c.confirm(in, version, yes); err != nil {
		return err
	}
	// Whoever was asked may have taken hours to answer: the key may be current by now.
	if err := tokens.ring.Refresh(ctx); err != nil {
		return err
	}
	if version, err = mayRetire(ctx, cfg, tokens, id); err != nil {
		return err
	}
	unlock, err := lockKeys(cfg.StateDir)
	if err != nil {
		return err
	}
	defer unlock()
	destroyed, err := c.destroy(ctx, cfg, tokens, version)
	if err != nil {
		return err
	}
	version.Tokens = destroyed
	if c.output == "json" {
		return c.json(keyOf(version))
	}
	_, err = fmt.Fprintf(c.out, "Destroyed %s on %s.\n", id, strings.Join(destroyed, ", "))
	return err
}

// mayRetire finds the version and says why it must not be destroyed, if anything speaks against it.
func mayRetire(ctx context.Context, cfg *config.Config, in *tokensInUse, id envelope.KeyID) (envelope.Version, error) {
	var none envelope.Version
	if err := errors.Join(in.problems...); err != nil {
		return none, finding(hint.Wrap(fmt.Errorf("a key is destroyed only when every configured token can be reached: %w", err),
			"make every token reachable, or take one that is gone for good out of the configuration"))
	}
	if err := in.ring.Exercise(ctx); err != nil && !errors.Is(err, envelope.ErrAmbiguous) {
		return none, fmt.Errorf("finding out which key is current: %w", err)
	}
	versions := in.ring.View().Versions
	if err := clockIsPlausible(versions, in.proven, time.Now()); err != nil {
		return none, err
	}
	for _, v := range versions {
		if v.ID != id || v.State == envelope.Refused {
			continue
		}
		return v, mayWithdraw(v, cfg.RefreshInterval.Std(), time.Now())
	}
	return none, finding(hint.Wrap(fmt.Errorf("%w: %s is not in the ring", envelope.ErrUnknownKey, id), "see what is there with: hsm-kms keys list"))
}

// clockIsPlausible refuses to judge what is pending by a clock that is behind: a key in use would look pending.
func clockIsPlausible(versions []envelope.Version, proven health.Proven, now time.Time) error {
	advice := "set this machine's clock right, then try again"
	if proven.At.After(now) {
		return finding(hint.Wrap(fmt.Errorf("this machine's clock is behind: it says %s, and the plugin here proved a key at %s", now.UTC().Format(time.RFC3339), proven.At.UTC().Format(time.RFC3339)), advice))
	}
	for _, v := range versions {
		if v.State != envelope.Refused && !v.Activation.After(now) {
			return nil
		}
	}
	if len(versions) == 0 {
		return nil // there is nothing to judge, and the key is not there
	}
	return finding(hint.Wrap(fmt.Errorf("by this machine's clock (%s) no key of the ring is in use yet", now.UTC().Format(time.RFC3339)), advice))
}

func mayWithdraw(v envelope.Version, refresh time.Duration, now time.Time) error {
	switch v.State {
	case envelope.Current:
		return finding(hint.Wrap(fmt.Errorf("%s is current and is never destroyed", v.ID), "rotate first: hsm-kms keys rotate"))
	case envelope.Retained:
		return finding(hint.Wrap(fmt.Errorf("%s was current: data in etcd, or in a backup, may need it, and there is no evidence to the contrary", v.ID),
			"keep it: a key that is retained costs nothing"))
	}
	margin := max(withdrawMargin, 2*refresh)
	switch left := v.Activation.Sub(now); {
	case left < 0:
		return finding(hint.Wrap(fmt.Errorf("%s was to become current %s ago: a node may have sealed under it", v.ID, -left.Round(time.Second)),
			"rotate again: hsm-kms keys rotate"))
	case left < margin:
		return finding(hint.Wrap(fmt.Errorf("%s becomes current in %s: within %s of it a node may have sealed under it", v.ID, left.Round(time.Second), margin),
			"let it become current and rotate again"))
	}
	return nil
}

// confirm asks for the first characters of the fingerprint on a terminal. Without one, --yes must say it.
func (c *command) confirm(in io.Reader, v envelope.Version, yes bool) error {
	if yes {
		return nil
	}
	file, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return finding(hint.Wrap(errors.New("destroying a key needs a confirmation, and there is no terminal to ask on"), "say it with --yes"))
	}
	fmt.Fprintf(c.errOut, "This destroys %s on %s for ever.\nType its fingerprint to go on: ", v.ID, strings.Join(v.Tokens, ", "))
	line, err := bufio.NewReader(io.LimitReader(in, 256)).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != v.ID.FingerprintHex() {
		return finding(hint.Wrap(errors.New("not confirmed; nothing was destroyed"), "type "+v.ID.FingerprintHex()+", or say --yes"))
	}
	return nil
}

// destroy removes the key from every token that holds it, with a record in an audit trail of its own before
// and after.
func (c *command) destroy(ctx context.Context, cfg *config.Config, in *tokensInUse, v envelope.Version) (destroyed []string, err error) {
	record, closeTrail, err := retireTrail(cfg, v)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeTrail()) }()
	if err := record("keys.retire.begin", codes.OK); err != nil {
		return nil, fmt.Errorf("nothing was destroyed: %w", err)
	}
	destroyed, err = in.set.Destroy(ctx, v.ID)
	code := codes.OK
	if err != nil {
		code = codes.Unavailable
		err = hint.Wrap(fmt.Errorf("destroying %s (done on: %s): %w", v.ID, orNobody(destroyed), err), "run the same command again: it goes on where it stopped")
	}
	return destroyed, errors.Join(err, record("keys.retire.end", code))
}

func orNobody(tokens []string) string {
	if len(tokens) == 0 {
		return "no token"
	}
	return strings.Join(tokens, ", ")
}

// retireTrail opens the trail beside the plugin's; without audit.path there is none.
func retireTrail(cfg *config.Config, v envelope.Version) (record func(string, codes.Code) error, closeTrail func() error, err error) {
	if cfg.Audit.Path == "" {
		return func(string, codes.Code) error { return nil }, func() error { return nil }, nil
	}
	if err := prepareAuditFolder(cfg.Audit.Path); err != nil {
		return nil, nil, err
	}
	writer, err := audit.OpenBeside(cfg.Audit.Path, "keys-retire", nil)
	if err != nil {
		return nil, nil, err
	}
	executable, _ := os.Executable() // best effort, as for every peer
	record = func(operation string, code codes.Code) error {
		return writer.Record(audit.Record{
			Time: time.Now(), Operation: operation, KeyID: v.ID.String(), Code: code.String(),
			Peer:   audit.Peer{PID: int32(os.Getpid()), UID: uint32(os.Getuid()), Executable: executable},
			Object: strings.Join(v.Tokens, ","), Reason: "by " + userName(),
		})
	}
	return record, writer.Close, nil
}

// userName is who runs the command, for people who read the trail.
func userName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "uid " + strconv.Itoa(os.Getuid())
}
