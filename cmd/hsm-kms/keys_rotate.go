package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/doctor"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// rotateMargin is what a rotation should leave, beyond two refresh intervals, for clocks that differ and for
// copying the key to other tokens.
const rotateMargin = time.Minute

type rotateFlags struct {
	activateIn time.Duration
	printID    bool
	another    bool
	timed      bool          // --if-older-than was given
	olderThan  time.Duration // its value
	without    []string      // tokens
}

func (c *command) keysRotate() *cobra.Command {
	f := &rotateFlags{}
	cmd := c.withConfig(c.withOutput(&cobra.Command{
		Use:   "rotate",
		Short: "Make the next version of the key, current on every node at one instant",
		Long: `Makes the next key in the first token. Every plugin sees it within its refreshInterval, exercises it, and
makes it current at the activation time; until then nothing changes. All versions go on being served for
Decrypt. With several tokens, copy the key to the others before the activation: each node holds it back
until every token of its configuration has it.

It refuses while a version is pending, unless --another. --if-older-than makes it safe to run from a timer: with
a current key that is younger, or while a version is pending, it says "not due" and exits 0.

--without-token makes an emergency key, which becomes current at its activation on one token alone and is lost with
it until it is copied. The mark is in the key's CKA_ID: every node sees it, and nobody can take it off.

--print-id makes no key: it prints the label and the CKA_ID for a vendor's tool to make one with.`,
		Example: `  hsm-kms keys rotate
  hsm-kms keys rotate --activate-in 24h
  hsm-kms keys rotate --if-older-than 2160h
  hsm-kms keys rotate --activate-in 2m --without-token hsm-b
  hsm-kms keys rotate --print-id -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.timed = cmd.Flags().Changed("if-older-than")
			return c.rotate(cmd.Context(), f)
		},
	}))
	flags := cmd.Flags()
	flags.DurationVar(&f.activateIn, "activate-in", 15*time.Minute, "how long from now until the key becomes current")
	flags.BoolVar(&f.printID, "print-id", false, "print label and CKA_ID for a vendor's tool instead of making a key")
	flags.BoolVar(&f.another, "another", false, "make a key although one is pending")
	flags.DurationVar(&f.olderThan, "if-older-than", 0, "make a key only if the current one is at least that old (90 days: 2160h) and none is pending")
	flags.StringArrayVar(&f.without, "without-token", nil, "make an emergency key, because the token of this `name` cannot have it; may be given again")
	return cmd
}

// check refuses flags that contradict each other or the configuration.
func (f *rotateFlags) check(cfg *config.Config) error {
	switch {
	case f.activateIn < 0:
		return hint.Wrap(fmt.Errorf("--activate-in %s lies in the past", f.activateIn), "0s activates at once")
	case f.olderThan < 0:
		return hint.Wrap(fmt.Errorf("--if-older-than %s is negative", f.olderThan), "2160h is 90 days")
	case f.timed && f.another:
		return hint.Wrap(errors.New("--if-older-than and --another contradict each other: from a timer, --another would make keys without end"), "leave one of the two out")
	}
	for _, name := range f.without {
		at := slices.IndexFunc(cfg.Tokens, func(t config.Token) bool { return t.Name == name })
		switch {
		case at < 0:
			return hint.Wrap(fmt.Errorf("--without-token %q names no token of the configuration", name), "the tokens are: "+strings.Join(tokenNames(cfg), ", "))
		case at == 0:
			return hint.Wrap(fmt.Errorf("--without-token %s: keys are made in the first token of the configuration, and that is this one", name), "put another token first in the configuration of this machine")
		}
	}
	return nil
}

func tokenNames(cfg *config.Config) []string {
	var names []string
	for _, t := range cfg.Tokens {
		names = append(names, t.Name)
	}
	return names
}

func (c *command) rotate(ctx context.Context, f *rotateFlags) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	if err := f.check(cfg); err != nil {
		return err
	}
	if err := doctor.MayMakeObjects(cfg); err != nil && !f.printID {
		return finding(err)
	}
	unlock, err := lockKeys(cfg.StateDir)
	if err != nil {
		return err
	}
	defer unlock()
	before, err := c.lookBeforeRotation(ctx, cfg, f)
	if err != nil {
		return err
	}
	now := time.Now()
	if f.timed {
		why, err := notDue(before, f.olderThan, now)
		if err != nil {
			return err
		}
		if why != "" {
			return c.printNotDue(before, why, now)
		}
	}
	activation := now.Add(f.activateIn).Truncate(time.Millisecond)
	if err := mayRotate(cfg.KeyRing, before, f.another, activation, now); err != nil {
		return err
	}
	if least := 2*cfg.RefreshInterval.Std() + rotateMargin; f.activateIn < least {
		fmt.Fprintf(c.errOut, "hsm-kms: warning: %s is less than %s: a node may not have seen the key by then, and cannot read what others write under it until it has\n", f.activateIn, least)
	}
	newID := envelope.NewCKAID
	if f.without != nil {
		newID = envelope.NewEmergencyCKAID
	}
	id, err := newID(activation)
	if err != nil {
		return err
	}
	if f.printID {
		return c.printID(cfg.KeyRing, id, activation, f.without != nil)
	}
	made, err := c.makeKey(ctx, cfg, id)
	if err != nil {
		return err
	}
	return c.printRotated(ctx, cfg, f, before, made)
}

// notDueJSON is what --if-older-than says when it makes no key. Fields and names are a contract.
type notDueJSON struct {
	Due     bool     `json:"due"`
	Reason  string   `json:"reason"`
	Current string   `json:"current,omitempty"`
	Pending []string `json:"pending,omitempty"`
}

func (c *command) printNotDue(view envelope.View, why string, now time.Time) error {
	said := notDueJSON{Reason: why}
	if view.Current != nil {
		said.Current = view.Current.ID.String()
	}
	for _, v := range coming(view, now) {
		if v.State != envelope.Refused {
			said.Pending = append(said.Pending, v.ID.String())
		}
	}
	if c.output == "json" {
		return c.json(said)
	}
	_, err := fmt.Fprintf(c.out, "not due: %s\n", why)
	return err
}

// rotatedJSON is the key that was made.
type rotatedJSON struct {
	keyJSON
	Due           bool     `json:"due,omitempty"`           // with --if-older-than
	MadeMeanwhile []string `json:"madeMeanwhile,omitempty"` // keys that another command made at the same moment
}

// printRotated tells of the key, and of another that was made at the same moment: nothing locks a token for the commands of
// several machines, so that two can pass the look before. At least the one that reads last sees both.
func (c *command) printRotated(ctx context.Context, cfg *config.Config, f *rotateFlags, before envelope.View, made envelope.Version) error {
	// Read back alone, the new key looks as if it were the only one: its state is what the ring makes of it.
	made.State = envelope.Pending
	if !made.Activation.After(time.Now()) {
		made.State = envelope.Current
	}
	meanwhile, err := c.madeMeanwhile(ctx, cfg, before, made)
	if c.output == "json" {
		said := rotatedJSON{keyJSON: keyOf(made), Due: f.timed}
		for _, v := range meanwhile {
			said.MadeMeanwhile = append(said.MadeMeanwhile, nameOf(v))
		}
		return cmp.Or(c.json(said), err)
	}
	_, printErr := fmt.Fprintf(c.out, "Made %s in the token %s; it becomes current at %s.%s\n",
		made.ID, made.Tokens[0], made.Activation.UTC().Format(time.RFC3339), copyAdvice(cfg, f.without != nil))
	return cmp.Or(printErr, err)
}

// copyAdvice says which tokens the key is to be copied to; "": to none.
func copyAdvice(cfg *config.Config, emergency bool) string {
	others := strings.Join(tokenNames(cfg)[1:], ", ")
	switch {
	case others == "":
		return ""
	case emergency:
		return " It waits for no token, and is lost with this one until it is copied to " + others + "."
	}
	return " Copy it to " + others + " before then: each node holds it back until every token has it."
}

func (c *command) printID(ring string, id []byte, activation time.Time, emergency bool) error {
	at := activation.UTC().Format(rfc3339Milli)
	if c.output == "json" {
		return c.json(struct {
			Label     string `json:"label"`
			Ring      string `json:"ring"`
			ID        string `json:"id"`
			IDText    string `json:"idText"`
			Activates string `json:"activates"`
			Emergency bool   `json:"emergency,omitempty"`
		}{ring, ring, hex.EncodeToString(id), string(id), at, emergency})
	}
	rows := [][]string{{"label", ring}, {"CKA_ID", string(id)}, {"CKA_ID (hex)", hex.EncodeToString(id)}, {"activates", at}}
	if emergency {
		rows = append(rows, []string{"emergency", "yes: it waits for no token"})
	}
	return c.table(rows)
}
