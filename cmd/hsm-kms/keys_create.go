package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/keyops"
)

func (c *command) keysCreate() *cobra.Command {
	f := &clusterFlags{}
	cmd := c.withConfig(c.withRing(c.withOutput(&cobra.Command{
		Use:   "create",
		Short: "Make the first key of the ring in the HSM",
		Long: `Proves on the token that the profile works there. Then it makes an AES-256 key (profile hmac-kdf: a 256-bit generic secret)
in the first token, sensitive and not extractable, and checks it. It refuses when the ring has a key already.
With several tokens, copy the key to the others: no node writes under it until every token of its configuration has it.

--ring makes the first key of a read ring, such as that of a new HSM before anything is written under it.

--cluster or --kubeconfig also writes on the tokens which cluster the ring belongs to; see keys bind.`,
		Example: `  hsm-kms keys create --config /etc/hsm-kms/config.yaml
  hsm-kms keys create --kubeconfig /etc/kubernetes/admin.conf`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.runKeysCreate(cmd.Context(), f) },
	})))
	f.add(cmd)
	return cmd
}

func (c *command) runKeysCreate(ctx context.Context, f *clusterFlags) error {
	a, uid, err := f.load(ctx, c)
	if err != nil {
		return err
	}
	made, err := keyops.Create(ctx, a, uid)
	if made == nil || !made.Served {
		return errors.Join(err, c.printUnserved(made))
	}
	return errors.Join(err, c.printMade(a.Config, made))
}

// printUnserved prints with -o json the key that may be on the token although it is of no use, or nobody has seen it.
func (c *command) printUnserved(made *keyops.Made) error {
	if made == nil || !c.structured() {
		return nil
	}
	return c.json(keyOf(made.Version))
}

func (c *command) printMade(cfg *config.Config, made *keyops.Made) error {
	on := made.Bound.Tokens()
	if c.structured() {
		printed := keyOf(made.Version)
		if len(on) > 0 {
			printed.Cluster = made.Bound.Cluster
		}
		return c.json(printed)
	}
	advice := ""
	if others := strings.Join(cfg.TokenNames()[1:], ", "); others != "" {
		advice = " Copy it to " + others + ": no node writes under it until every token has it."
	}
	if len(on) > 0 {
		advice += " The ring belongs to the cluster " + made.Bound.Cluster + ": it is written on " + strings.Join(on, ", ") + "."
	}
	_, err := fmt.Fprintf(c.out, "Made %s in the token %s.%s\n", made.ID, made.Tokens[0], advice)
	return err
}
