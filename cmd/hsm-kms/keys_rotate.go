package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// rotateMargin is what a rotation should leave, beyond two refresh intervals, for clocks that differ and for
// copying the key to other tokens.
const rotateMargin = time.Minute

func (c *command) keysRotate() *cobra.Command {
	var activateIn time.Duration
	var printID bool
	cmd := c.withConfig(c.withOutput(&cobra.Command{
		Use:   "rotate",
		Short: "Make the next version of the key, current on every node at one instant",
		Long: `Makes the next key in the first token. Every plugin sees it within its refreshInterval, exercises it, and
makes it current at the activation time; until then nothing changes. All versions go on being served for
Decrypt. With several tokens, copy the key to the others before the activation.

--print-id makes no key: it prints the label and the CKA_ID for a vendor's tool to make one with.`,
		Example: `  hsm-kms keys rotate
  hsm-kms keys rotate --activate-in 24h
  hsm-kms keys rotate --print-id -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.rotate(cmd.Context(), activateIn, printID)
		},
	}))
	cmd.Flags().DurationVar(&activateIn, "activate-in", 15*time.Minute, "how long from now until the key becomes current")
	cmd.Flags().BoolVar(&printID, "print-id", false, "print label and CKA_ID for a vendor's tool instead of making a key")
	return cmd
}

func (c *command) rotate(ctx context.Context, activateIn time.Duration, printID bool) error {
	if activateIn < 0 {
		return hint.Wrap(fmt.Errorf("--activate-in %s lies in the past", activateIn), "0s activates at once")
	}
	cfg, err := c.load()
	if err != nil {
		return err
	}
	unlock, err := lockKeys(cfg.StateDir)
	if err != nil {
		return err
	}
	defer unlock()
	activation := time.Now().Add(activateIn).Truncate(time.Millisecond)
	if err := c.mayRotate(ctx, cfg, activation); err != nil {
		return err
	}
	if least := 2*cfg.RefreshInterval.Std() + rotateMargin; activateIn < least {
		fmt.Fprintf(c.errOut, "hsm-kms: warning: %s is less than %s: a node may not have seen the key by then, and cannot read what others write under it until it has\n", activateIn, least)
	}
	id, err := envelope.NewCKAID(activation)
	if err != nil {
		return err
	}
	if printID {
		return c.printID(cfg.KeyRing, id, activation)
	}
	made, err := c.makeKey(ctx, cfg, id)
	if err != nil {
		return err
	}
	// Read back alone, the new key looks as if it were the only one: its state is what the ring makes of it.
	made.State = envelope.Pending
	if !made.Activation.After(time.Now()) {
		made.State = envelope.Current
	}
	if c.output == "json" {
		return c.json(keyOf(made))
	}
	_, err = fmt.Fprintf(c.out, "Made %s in the token %s; it becomes current at %s.\n", made.ID, made.Tokens[0], activation.UTC().Format(time.RFC3339))
	return err
}

// mayRotate refuses a rotation that would not come last: the order of the ring is that of activation, and a
// key that is older than another would never become current.
func (c *command) mayRotate(ctx context.Context, cfg *config.Config, activation time.Time) error {
	in, err := c.connectAll(ctx, cfg)
	if err != nil {
		return err
	}
	defer in.stop()
	if in.problems[0] != nil {
		return fmt.Errorf("keys are made in the first token: %w", in.problems[0])
	}
	if others := errors.Join(in.problems...); others != nil {
		fmt.Fprintln(c.errOut, "hsm-kms: warning: the key must be copied to every token before it becomes current:", others)
	}
	versions := in.ring.View().Versions
	served := 0
	for _, v := range versions {
		if v.State == envelope.Refused {
			continue
		}
		served++
		if !v.Activation.Before(activation) {
			return finding(hint.Wrap(
				fmt.Errorf("%s becomes current at %s, not before the new key would (%s)", v.ID, v.Activation.UTC().Format(time.RFC3339), activation.UTC().Format(time.RFC3339)),
				"choose a longer --activate-in, or withdraw that key first: hsm-kms keys retire "+v.ID.String()))
		}
	}
	if served == 0 {
		return finding(hint.Wrap(fmt.Errorf("the ring %s is empty: there is nothing to rotate", cfg.KeyRing), "make the first key with: hsm-kms keys create"))
	}
	return nil
}

func (c *command) printID(ring string, id []byte, activation time.Time) error {
	at := activation.UTC().Format(rfc3339Milli)
	if c.output == "json" {
		return c.json(struct {
			Label     string `json:"label"`
			Ring      string `json:"ring"`
			ID        string `json:"id"`
			IDText    string `json:"idText"`
			Activates string `json:"activates"`
		}{ring, ring, hex.EncodeToString(id), string(id), at})
	}
	return c.table([][]string{{"label", ring}, {"CKA_ID", string(id)}, {"CKA_ID (hex)", hex.EncodeToString(id)}, {"activates", at}})
}
