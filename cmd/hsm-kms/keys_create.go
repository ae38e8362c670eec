package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

func (c *command) keysCreate() *cobra.Command {
	return c.withConfig(c.withOutput(&cobra.Command{
		Use:   "create",
		Short: "Make the first key of the ring in the HSM",
		Long: `Makes an AES-256 key (profile hmac-kdf: a 256-bit generic secret) in the first token, sensitive and not
extractable, then reads it back and checks it. Refuses when the ring has a key already.`,
		Example: "  hsm-kms keys create --config /etc/hsm-kms/config.yaml",
		Args:    cobra.NoArgs,
		RunE:    c.runKeysCreate,
	}))
}

func (c *command) runKeysCreate(cmd *cobra.Command, _ []string) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	unlock, err := lockKeys(cfg.StateDir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.ringMustBeEmpty(cmd.Context(), cfg); err != nil {
		return err
	}
	id, err := envelope.NewCKAID(time.Now())
	if err != nil {
		return err
	}
	made, err := c.makeKey(cmd.Context(), cfg, id)
	if err != nil {
		return err
	}
	return c.printMade(made)
}

func (c *command) printMade(made envelope.Version) error {
	if c.output == "json" {
		return c.json(keyOf(made))
	}
	_, err := fmt.Fprintf(c.out, "Made %s in the token %s.\n", made.ID, made.Tokens[0])
	return err
}

// ringMustBeEmpty looks at every token: a ring that exists on the second token only is a copy that went
// missing on the first, and a new first key would be another ring under its name.
func (c *command) ringMustBeEmpty(ctx context.Context, cfg *config.Config) error {
	in, err := c.connectAll(ctx, cfg)
	if err != nil {
		return err
	}
	defer in.stop()
	if err := errors.Join(in.problems...); err != nil {
		return fmt.Errorf("looking whether the ring is empty: %w", err)
	}
	versions := in.ring.View().Versions
	if len(versions) == 0 {
		return nil
	}
	return finding(hint.Wrap(fmt.Errorf("the ring %s has a key already: %s", cfg.KeyRing, nameOf(versions[0])),
		"list what there is with: hsm-kms keys list"))
}

// makeKey generates the key and reads it back. It looks also after an error: a token may have done what it
// reports as failed, and the key would be there.
func (c *command) makeKey(ctx context.Context, cfg *config.Config, id []byte) (envelope.Version, error) {
	common, tokens, err := hsmConfig(cfg)
	if err != nil {
		return envelope.Version{}, err
	}
	generateErr := hsm.Generate(ctx, common, tokens[0], id)
	if errors.Is(generateErr, envelope.ErrPINRefused) || errors.Is(generateErr, hsm.ErrConfiguration) {
		return envelope.Version{}, generateErr
	}
	in, err := connect(ctx, common, tokens[:1], envelope.RingConfig{})
	if err != nil {
		return envelope.Version{}, errors.Join(generateErr, fmt.Errorf("reading the key back: %w", err))
	}
	defer in.stop()
	exerciseErr := in.ring.Exercise(ctx)
	for _, v := range in.ring.View().Versions {
		if !bytes.Equal(v.CKAID, id) {
			continue
		}
		if v.Refused != "" {
			return v, finding(hint.Wrap(fmt.Errorf("the key with CKA_ID %x was made and is not served: %s", id, v.Refused),
				"remove it with the vendor's tool; this token cannot make keys that are safe to serve"))
		}
		if exerciseErr != nil {
			// The key is there, and whoever made it must be told so, whatever else is wrong.
			fmt.Fprintln(c.errOut, "hsm-kms: warning: the key is made, and the ring could not be exercised:", exerciseErr)
		}
		return v, nil
	}
	if generateErr != nil {
		return envelope.Version{}, generateErr
	}
	return envelope.Version{}, fmt.Errorf("the token reported that it made the key with CKA_ID %x, and does not hold it", id)
}

// load reads the configuration and checks what it names.
func (c *command) load() (*config.Config, error) {
	cfg, err := config.Load(c.configPath)
	if err != nil {
		return nil, err
	}
	return cfg, preflight(cfg)
}
