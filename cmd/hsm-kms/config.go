package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

func (c *command) config() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "config",
		Short: "Print a sample of the configuration; check a configuration",
		Example: `  hsm-kms config example > config.yaml
  hsm-kms config validate --config config.yaml`,
	})
	cmd.AddCommand(c.configExample(), c.configValidate())
	return cmd
}

func (c *command) configExample() *cobra.Command {
	return &cobra.Command{
		Use:     "example",
		Short:   "Print a configuration with every field, its default and comments",
		Example: "  hsm-kms config example > config.yaml",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := io.WriteString(c.out, config.Example)
			return err
		},
	}
}

func (c *command) configValidate() *cobra.Command {
	return c.withConfig(&cobra.Command{
		Use:   "validate",
		Short: "Check a configuration as serve does, without a token",
		Long: `Checks the file, and the module, PIN file and stateDir that it names, as serve does before it loads a module. Makes stateDir
if it is missing. It loads no module and logs in to nothing: doctor does. Run it as the user that the plugin runs as.

Exits 0 when serve would take the configuration, 1 when keyRing is still the placeholder of the samples, 2 when serve would
refuse it. What serve warns of is a warning here.`,
		Example: "  hsm-kms config validate --config config.yaml",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			a, err := c.load()
			if err != nil {
				return err
			}
			if _, err := app.RefusedKeys(a.Config); err != nil {
				return err
			}
			if a.Config.KeyRing == config.PlaceholderRing {
				return app.Finding(hint.Wrap(fmt.Errorf("keyRing is %s, the placeholder of the samples: clusters that share a ring share its keys", a.Config.KeyRing),
					"name the ring after its cluster, in keyRing of the configuration of every node"))
			}
			for _, warning := range a.Config.Warnings() {
				fmt.Fprintln(c.errOut, "hsm-kms: warning:", warning)
			}
			for _, ring := range a.File.RingNames()[1:] {
				if _, err := a.ForRing(ring); err != nil {
					c.warn(fmt.Errorf("serve goes on without the read ring %s: %w", ring, err))
				}
			}
			_, err = fmt.Fprintf(c.out, "%s is a configuration that serve takes\n", c.configPath)
			return err
		},
	})
}
