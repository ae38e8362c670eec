package main

import (
	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/daemon"
)

func (c *command) serve() *cobra.Command {
	return c.withConfig(&cobra.Command{
		Use:   "serve",
		Short: "Run the plugin in the foreground",
		Long: `Serves the KMS v2 API on the Unix socket until SIGTERM or SIGINT, then finishes the requests in flight.

An error that a person must correct (configuration, module file, PIN file, socket in use) ends it with exit 2 before it
serves. A fault that can pass (HSM unreachable, token absent, PIN refused, ring empty) does not end it: it serves what it
can, reports the fault, and recovers without a restart.`,
		Example: "  hsm-kms serve --config /etc/hsm-kms/config.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := c.load()
			if err != nil {
				return err
			}
			ctx, stop := c.process.UntilSignal(cmd.Context())
			defer stop()
			return daemon.Run(ctx, a.Config, c.errOut, daemon.Build{Version: version, Commit: commit})
		},
	})
}
