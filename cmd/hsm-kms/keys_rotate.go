package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/keyops"
	"github.com/hsm-kms/hsm-kms/internal/duration"
)

func (c *command) keysRotate() *cobra.Command {
	r := keyops.Rotation{}
	cmd := c.withConfig(c.withOutput(&cobra.Command{
		Use:   "rotate",
		Short: "Make the next version of the key, current on every node at one instant",
		Long: `Makes the next key in the first token. Every plugin sees it within its refreshInterval, proves it, and makes it current at
the activation time. Until then nothing changes. All versions stay available for Decrypt. With several tokens, copy the
key to the others before the activation: each node holds it back until every token of its configuration has it.

It refuses while a version is pending, unless you give --another. --if-older-than makes it safe to run from a timer: with
a current key that is younger, or while a version is pending, it prints "not due" and exits 0.

--without-token makes an emergency key. It becomes current at its activation on one token alone, and is lost with that
token until it is copied. The mark is in the key's CKA_ID: every node sees it, and it cannot be removed.

--print-id makes no key: it prints the label and the CKA_ID for a vendor's tool to make one with. For the first key of a
ring, add --activate-in 0s.`,
		Example: `  hsm-kms keys rotate
  hsm-kms keys rotate --activate-in 24h
  hsm-kms keys rotate --if-older-than 90d
  hsm-kms keys rotate --activate-in 2m --without-token hsm-b
  hsm-kms keys rotate --print-id -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r.Timed = cmd.Flags().Changed("if-older-than")
			return c.rotate(cmd.Context(), r)
		},
	}))
	flags := cmd.Flags()
	duration.Var(flags, &r.ActivateIn, "activate-in", 15*time.Minute, "how long from now until the key becomes current")
	flags.BoolVar(&r.PrintID, "print-id", false, "print label and CKA_ID for a vendor's tool instead of making a key")
	flags.BoolVar(&r.Another, "another", false, "make a key although one is pending")
	duration.Var(flags, &r.OlderThan, "if-older-than", 0, "make a key only if the current one is at least that old (such as 90d) and none is pending")
	flags.StringArrayVar(&r.Without, "without-token", nil, "make an emergency key, because the token of this `name` cannot have it; repeatable")
	return cmd
}

func (c *command) rotate(ctx context.Context, r keyops.Rotation) error {
	a, err := c.load()
	if err != nil {
		return err
	}
	done, err := keyops.Rotate(ctx, a, r)
	switch {
	case done.NotDue != nil:
		return c.printNotDue(done.NotDue)
	case done.ID != nil:
		return c.printID(a.Config.KeyRing, done.ID, r.Emergency())
	case done.Made == nil || !done.Made.Served:
		return errors.Join(err, c.printUnserved(done.Made))
	}
	return cmp.Or(c.printRotated(a.Config, r, done.Made), err)
}

func (c *command) printNotDue(not *keyops.NotDue) error {
	if c.structured() {
		return c.json(not)
	}
	_, err := fmt.Fprintf(c.out, "not due: %s\n", not.Reason)
	return err
}

// rotatedJSON is the key that was made.
type rotatedJSON struct {
	keyJSON
	Due           bool     `json:"due,omitempty"`           // with --if-older-than
	MadeMeanwhile []string `json:"madeMeanwhile,omitempty"` // keys that another command made at the same moment
}

func (c *command) printRotated(cfg *config.Config, r keyops.Rotation, made *keyops.Made) error {
	if c.structured() {
		rotated := rotatedJSON{keyJSON: keyOf(made.Version), Due: r.Timed}
		for _, v := range made.Meanwhile {
			rotated.MadeMeanwhile = append(rotated.MadeMeanwhile, keyops.Name(v))
		}
		return c.json(rotated)
	}
	_, err := fmt.Fprintf(c.out, "Made %s in the token %s; it becomes current at %s.%s\n",
		made.ID, made.Tokens[0], made.Activation.UTC().Format(time.RFC3339), copyHint(cfg, r.Emergency()))
	return err
}

// copyHint says which tokens the key is to be copied to; "": to none.
func copyHint(cfg *config.Config, emergency bool) string {
	others := strings.Join(cfg.TokenNames()[1:], ", ")
	switch {
	case others == "":
		return ""
	case emergency:
		return " It waits for no token, and is lost with this one until it is copied to " + others + "."
	}
	return " Copy it to " + others + " before then: each node holds it back until every token has it."
}

func (c *command) printID(ring string, id *keyops.NewID, emergency bool) error {
	at := id.Activation.UTC().Format(rfc3339Milli)
	if c.structured() {
		return c.json(struct {
			Label     string `json:"label"`
			Ring      string `json:"ring"`
			ID        string `json:"id"`
			IDText    string `json:"idText"`
			Activates string `json:"activates"`
			Emergency bool   `json:"emergency,omitempty"`
		}{ring, ring, hex.EncodeToString(id.CKAID), string(id.CKAID), at, emergency})
	}
	rows := [][]string{{"label", ring}, {"CKA_ID", string(id.CKAID)}, {"CKA_ID (hex)", hex.EncodeToString(id.CKAID)}, {"activates", at}}
	if emergency {
		rows = append(rows, []string{"emergency", "yes: it waits for no token"})
	}
	return c.table(rows)
}
