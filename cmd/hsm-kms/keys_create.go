package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
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
extractable, then reads it back and checks it. Refuses when the ring has a key already. With several tokens, copy
the key to the others: no node writes under it until every token of its configuration has it.`,
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
	if cfg.KeyRing == config.PlaceholderRing {
		return finding(hint.Wrap(fmt.Errorf("keyRing is %s, the placeholder of the samples: clusters that share a ring share its keys", cfg.KeyRing),
			"name the ring after its cluster, in keyRing of the configuration of every node"))
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
	return c.printMade(cfg, made)
}

func (c *command) printMade(cfg *config.Config, made envelope.Version) error {
	if c.output == "json" {
		return c.json(keyOf(made))
	}
	advice := ""
	if others := strings.Join(tokenNames(cfg)[1:], ", "); others != "" {
		advice = " Copy it to " + others + ": no node writes under it until every token has it."
	}
	_, err := fmt.Fprintf(c.out, "Made %s in the token %s.%s\n", made.ID, made.Tokens[0], advice)
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

// makeKey makes the key and says what became of it. When a key may be on the token that is not served, or that nobody has
// seen, it is printed with -o json beside the error.
func (c *command) makeKey(ctx context.Context, cfg *config.Config, id []byte) (envelope.Version, error) {
	common, tokens, err := hsmConfig(cfg)
	if err != nil {
		return envelope.Version{}, err
	}
	made, err := hsm.Generate(ctx, common, tokens[0], id)
	v := envelope.Version{Key: made.Key, State: envelope.Current, Tokens: []string{tokens[0].Name}}
	if v.Activation.After(time.Now()) {
		v.State = envelope.Pending
	}
	switch {
	case made.Outcome == hsm.Made && made.Hangs:
		err = hint.Wrap(fmt.Errorf("the key with CKA_ID %x was made, and a call into the module has not returned: nothing more was looked at", id),
			"when the HSM answers again, see how it is with: hsm-kms keys list")
	case made.Outcome == hsm.Made && made.Key.Refused == "":
		return v, nil
	case made.Outcome == hsm.Made:
		v.State = envelope.Refused
		err = finding(hint.Wrap(fmt.Errorf("the key with CKA_ID %x was made and is not served: %s", id, made.Key.Refused),
			"it harms nothing where it is; see it with: hsm-kms keys list; docs/hsm-support.md says what a token must offer"))
	case made.Outcome == hsm.Unknown:
		v.State, v.ID.Ring, v.Tokens = unknownState, cfg.KeyRing, []string{}
		err = hint.Wrap(fmt.Errorf("whether the key with CKA_ID %x was made is unknown: %w", id, err),
			"when the HSM answers again, see whether it is there with: hsm-kms keys list")
	case errors.Is(err, hsm.ErrProfile):
		return v, finding(fmt.Errorf("no key was made: %w", err))
	case errors.Is(err, envelope.ErrPINRefused), errors.Is(err, hsm.ErrConfiguration):
		return v, err // as everywhere
	default:
		return v, fmt.Errorf("no key was made: %w", err)
	}
	if c.output == "json" {
		err = errors.Join(err, c.json(keyOf(v)))
	}
	return v, err
}

// unknownState is the state of a key that may have been made, in JSON.
const unknownState envelope.State = "unknown"

// load reads the configuration and checks what it names.
func (c *command) load() (*config.Config, error) {
	cfg, err := config.Load(c.configPath)
	if err != nil {
		return nil, err
	}
	return cfg, preflight(cfg)
}
