package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/holdops"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/internal/duration"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin/hold/holdfile"
)

func (c *command) hold() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "hold",
		Short: "Fill or wipe the outage hold of the plugin on this node",
		Long: `With outageHold in the configuration, a plugin keeps the DEKs that it has opened, and answers with them while the HSM is
away. seed fills the hold with what etcd holds, so that kube-apiserver can start without the HSM. drop wipes it. See its
state with hsm-kms status.`,
		Example: `  hsm-kms hold seed
  hsm-kms hold drop`,
	})
	cmd.AddCommand(c.holdSeed(), c.holdDrop())
	return cmd
}

type seedFlags struct {
	etcdFlags
	wait       time.Duration
	allowEmpty bool
}

func (c *command) holdSeed() *cobra.Command {
	f := &seedFlags{}
	cmd := c.withConfig(c.withOutput(&cobra.Command{
		Use:   "seed",
		Short: "Have the plugin hold every DEK that etcd holds",
		Long: `Reads etcd as etcd report does, and hands every wrapped DEK under a key of the configuration's rings to the plugin on
this node. The plugin adds them to its list, has the HSM open them, and holds them. No DEK leaves the plugin. Run it on
each node, while the HSM answers. Later the plugin sees new DEKs by itself, because each API server reads what the others
write. Run it again after the API server of a node was down for a while.

Exits 0 when the hold is armed: everything on the list is held. Exits 1 when it is not, and reports why.`,
		Example: `  hsm-kms hold seed
  hsm-kms hold seed --wait 5m -o json
  hsm-kms hold seed --endpoints https://10.0.0.1:2379 --cacert ca.crt --cert client.crt --key client.key`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.runHoldSeed(cmd.Context(), f) },
	}))
	f.add(cmd)
	duration.Var(cmd.Flags(), &f.wait, "wait", time.Minute, "how long the plugin may take")
	cmd.Flags().BoolVar(&f.allowEmpty, "allow-empty", false, "no object under a key of the rings is no finding")
	return cmd
}

func (c *command) holdDrop() *cobra.Command {
	var wait time.Duration
	cmd := c.withConfig(c.withOutput(&cobra.Command{
		Use:   "drop",
		Short: "Have the plugin wipe its outage hold",
		Long: `The plugin on this node wipes the DEKs and keys that it holds, and empties its list. While the HSM answers, it goes on
serving. While the HSM is away, this ends the hold of this node: Status becomes an error, and kube-apiserver cannot
restart here until the HSM answers. The hold stays empty until you run hsm-kms hold seed or restart the plugin; only hold
seed fills it with everything that etcd has. To turn it off, set outageHold: 0s and restart the plugin.

Exits 0 when the plugin has wiped its hold. Otherwise it exits 1 and reports whether nothing was wiped or it is unknown.`,
		Example: `  hsm-kms hold drop`,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.runHoldDrop(cmd.Context(), wait) },
	}))
	duration.Var(cmd.Flags(), &wait, "wait", 10*time.Second, "how long the plugin may take")
	return cmd
}

// pluginHere is the plugin of the configuration. No token and no module is looked at: the HSM may be away.
func (c *command) pluginHere(wait time.Duration) (*config.Config, holdops.Plugin, error) {
	if wait <= 0 {
		return nil, holdops.Plugin{}, errors.New("--wait must be above 0")
	}
	cfg, err := config.Load(c.configPath)
	if err == nil {
		err = app.PrepareStateDir(cfg)
	}
	if err != nil {
		return nil, holdops.Plugin{}, err
	}
	return cfg, holdops.Plugin{Socket: cfg.Socket.Path, StateDir: cfg.StateDir, Wait: wait}, nil
}

// seedJSON is what became of hold seed. Fields and names are a contract.
type seedJSON struct {
	DEKs    int       `json:"deks"`    // wrapped DEKs that were found and handed over
	TakenUp bool      `json:"takenUp"` // they are in the plugin's list
	Added   int       `json:"added"`   // of them, new in the list
	Left    int       `json:"left"`    // of them, not in the list, which is full
	Hold    *holdJSON `json:"hold,omitempty"`
}

func (c *command) runHoldSeed(ctx context.Context, f *seedFlags) error {
	cfg, plugin, err := c.pluginHere(f.wait)
	if err != nil {
		return err
	}
	if err := plugin.Ready(ctx); err != nil {
		return err
	}
	found, err := c.wrapped(ctx, f, cfg.RingNames())
	if err != nil {
		return err
	}
	if len(found.DEKs) == 0 && !f.allowEmpty {
		return app.Finding(hint.Wrap(fmt.Errorf("no object was found under a key of %s: nothing was handed over", strings.Join(cfg.RingNames(), ", ")), "check that --endpoints and --prefix are those of this cluster; if it has no encrypted object yet, give --allow-empty"))
	}
	entries := make([]holdfile.Entry, len(found.DEKs))
	for i, dek := range found.DEKs {
		entries[i] = holdfile.Entry{KeyID: dek.KeyID, Envelope: dek.Source}
	}
	done, err := plugin.Seed(ctx, entries)
	if err != nil && !app.IsFinding(err) {
		return err
	}
	seeded := seedJSON{DEKs: len(entries), TakenUp: done.TakenUp, Hold: holdOf(done.State)}
	if done.TakenUp {
		seeded.Added, seeded.Left = done.State.Added, done.State.Left
	}
	return errors.Join(err, c.printSeeded(seeded, found.Sources))
}

// wrapped reads the wrapped DEKs under keys of the rings.
func (c *command) wrapped(ctx context.Context, f *seedFlags, rings []string) (found *evidence.WrappedDEKs, err error) {
	progress, done := c.progress()
	defer done()
	sources, closeAll, err := f.Open(ctx, progress)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	return evidence.Wrapped(ctx, sources, func(keyID string) bool {
		id, _, err := envelope.ParseUsedKeyID(keyID)
		return err == nil && slices.Contains(rings, id.Ring)
	}, holdfile.MaxEntries)
}

func (c *command) printSeeded(seeded seedJSON, sources []evidence.Reading) error {
	if c.structured() {
		return c.json(seeded)
	}
	w := &lines{out: c.out}
	if seeded.TakenUp {
		w.add("found %s; %s new in the plugin's list", counted(seeded.DEKs, "wrapped DEK"), grouped(int64(seeded.Added)))
	} else {
		w.add("found %s", counted(seeded.DEKs, "wrapped DEK"))
	}
	if seeded.Hold != nil {
		w.add("hold: %s", seeded.Hold.words())
	}
	w.notes(sources)
	return w.err
}

// dropJSON is what became of hold drop. Fields and names are a contract.
type dropJSON struct {
	Outcome holdops.Outcome `json:"outcome"`
}

func (c *command) runHoldDrop(ctx context.Context, wait time.Duration) error {
	_, plugin, err := c.pluginHere(wait)
	if err != nil {
		return err
	}
	outcome, err := plugin.Drop(ctx)
	if c.structured() {
		return errors.Join(err, c.json(dropJSON{outcome}))
	}
	if err == nil {
		_, err = fmt.Fprintln(c.out, "done: the plugin holds no DEK and no key")
	}
	return err
}

// holdJSON is the outage hold for programs. Fields and names are a contract.
type holdJSON struct {
	Limit   string   `json:"limit"` // outageHold
	Armed   bool     `json:"armed"`
	Why     string   `json:"why,omitempty"` // not armed
	Held    int      `json:"held"`
	Listed  int      `json:"listed"`
	Missing []string `json:"missing,omitempty"` // key_ids of DEKs that are listed and not held
	Full    bool     `json:"full,omitempty"`    // the list is
	Holding bool     `json:"holding"`           // the plugin answers without the HSM
	Since   string   `json:"since,omitempty"`
	Until   string   `json:"until,omitempty"`
	Used    string   `json:"used"` // of the limit, in the last seven days
}

// holdOf is what the plugin says of its hold; nil: it has none.
func holdOf(s *holdfile.State) *holdJSON {
	if s == nil {
		return nil
	}
	h := &holdJSON{
		Limit: duration.String(s.Limit), Armed: s.Armed, Why: s.Why, Held: s.Held, Listed: s.Listed, Missing: s.Missing, Full: s.Full, Holding: s.Holding,
		Used: duration.String(s.Used.Round(time.Second)),
	}
	if s.Holding {
		h.Since, h.Until = s.Since.UTC().Format(rfc3339Milli), s.Until.UTC().Format(rfc3339Milli)
	}
	return h
}

// words is the same for people.
func (h *holdJSON) words() string {
	held := fmt.Sprintf("%s of %s held", grouped(int64(h.Held)), counted(h.Listed, "DEK"))
	if h.Full {
		held += "; the list is full"
	}
	switch {
	case h.Holding:
		return fmt.Sprintf("the plugin answers without the HSM since %s, until %s at the latest (%s)", h.Since, h.Until, held)
	case h.Armed:
		return fmt.Sprintf("armed (%s; %s of %s used in 7 days)", held, h.Used, h.Limit)
	}
	return fmt.Sprintf("not armed: %s (%s)", h.Why, held)
}
