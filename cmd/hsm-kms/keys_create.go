package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/doctor"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

func (c *command) keysCreate() *cobra.Command {
	f := &clusterFlags{}
	cmd := c.withConfig(c.withOutput(&cobra.Command{
		Use:   "create",
		Short: "Make the first key of the ring in the HSM",
		Long: `Proves on the token that the profile works there, then makes an AES-256 key (profile hmac-kdf: a 256-bit generic
secret) in the first token, sensitive and not extractable, and checks it. Refuses when the ring has a key already.
With several tokens, copy the key to the others: no node writes under it until every token of its configuration has it.

--cluster or --kubeconfig also writes on the tokens which cluster the ring belongs to; see keys bind.`,
		Example: `  hsm-kms keys create --config /etc/hsm-kms/config.yaml
  hsm-kms keys create --kubeconfig /etc/kubernetes/admin.conf`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.runKeysCreate(cmd.Context(), f) },
	}))
	f.add(cmd)
	return cmd
}

func (c *command) runKeysCreate(ctx context.Context, f *clusterFlags) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	if cfg.KeyRing == config.PlaceholderRing {
		return finding(hint.Wrap(fmt.Errorf("keyRing is %s, the placeholder of the samples: clusters that share a ring share its keys", cfg.KeyRing),
			"name the ring after its cluster, in keyRing of the configuration of every node"))
	}
	if err := doctor.MayMakeObjects(cfg); err != nil {
		return finding(err)
	}
	uid, err := f.cluster(ctx)
	if err != nil {
		return err
	}
	unlock, err := lockKeys(cfg.StateDir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.ringMustBeEmpty(ctx, cfg, uid); err != nil {
		return err
	}
	id, err := envelope.NewCKAID(time.Now())
	if err != nil {
		return err
	}
	made, err := c.makeKey(ctx, cfg, id)
	if err != nil {
		return err
	}
	bound := boundJSON{}
	if uid != "" {
		bound, err = c.bindNewRing(ctx, cfg, uid)
	}
	return errors.Join(err, c.printMade(cfg, made, bound))
}

// bindNewRing: the key is made, and that must be said whatever becomes of the binding.
func (c *command) bindNewRing(ctx context.Context, cfg *config.Config, uid string) (boundJSON, error) {
	in, err := c.connectAll(ctx, cfg)
	if err == nil {
		defer in.stop()
		bound, bindErr := c.bind(ctx, in, cfg.KeyRing, uid)
		if err = bindErr; err == nil {
			return bound, nil
		}
	}
	return boundJSON{}, hint.Wrap(fmt.Errorf("the key is made, and the ring is perhaps not bound to its cluster: %w", err), "bind it with: hsm-kms keys bind --cluster "+uid)
}

func (c *command) printMade(cfg *config.Config, made envelope.Version, bound boundJSON) error {
	if c.output == "json" {
		said := keyOf(made)
		if len(bound.on("bound")) > 0 {
			said.Cluster = bound.Cluster
		}
		return c.json(said)
	}
	advice := ""
	if others := strings.Join(tokenNames(cfg)[1:], ", "); others != "" {
		advice = " Copy it to " + others + ": no node writes under it until every token has it."
	}
	if on := strings.Join(bound.on("bound"), ", "); on != "" {
		advice += " The ring belongs to the cluster " + bound.Cluster + ": it is written on " + on + "."
	}
	_, err := fmt.Fprintf(c.out, "Made %s in the token %s.%s\n", made.ID, made.Tokens[0], advice)
	return err
}

// ringMustBeEmpty looks at every token: a ring that exists on the second token only is a copy that went
// missing on the first, and a new first key would be another ring under its name. The ring must not belong to another
// cluster than uid either; empty: nobody said which one it is to belong to.
func (c *command) ringMustBeEmpty(ctx context.Context, cfg *config.Config, uid string) error {
	in, err := c.connectAll(ctx, cfg)
	if err != nil {
		return err
	}
	defer in.stop()
	if err := errors.Join(in.problems...); err != nil {
		return fmt.Errorf("looking whether the ring is empty: %w", err)
	}
	owner, err := clusterOf(ctx, in)
	versions := in.ring.View().Versions
	switch {
	case len(versions) > 0 && owner != "":
		return finding(hint.Wrap(fmt.Errorf("the ring %s has a key already: %s; it belongs to the cluster %s", cfg.KeyRing, nameOf(versions[0]), owner), whoseRing))
	case len(versions) > 0:
		return finding(hint.Wrap(fmt.Errorf("the ring %s has a key already: %s; another cluster may use it", cfg.KeyRing, nameOf(versions[0])), whoseRing))
	case err != nil:
		return err
	case owner != "" && uid == "":
		fmt.Fprintf(c.errOut, "hsm-kms: warning: the ring %s is empty, and belongs to the cluster %s\n", cfg.KeyRing, owner)
	case owner != "" && owner != uid:
		return finding(hint.Wrap(fmt.Errorf("%w: %s is bound to %s", hsm.ErrOtherCluster, cfg.KeyRing, owner), whoseRing))
	}
	return nil
}

// makeKey makes the key and says what became of it. When a key may be on the token that is not served, or that nobody has
// seen, it is printed with -o json beside the error.
func (c *command) makeKey(ctx context.Context, cfg *config.Config, id []byte) (envelope.Version, error) {
	common, tokens, err := c.hsmConfig(cfg)
	if err != nil {
		return envelope.Version{}, err
	}
	act, stop := c.acting(ctx)
	made, err := hsm.Generate(act, common, tokens[0], id)
	stop()
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
	case envelope.IsPIN(err), errors.Is(err, hsm.ErrConfiguration):
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
