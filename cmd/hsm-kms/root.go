package main

import (
	"cmp"
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// The exit codes of every command.
const (
	exitOK      = 0 // done, healthy
	exitFinding = 1 // a finding or a refusal: unhealthy, not safe
	exitUsage   = 2 // usage, configuration, cannot run
)

// command is what the subcommands share: where they write and what the common flags say.
type command struct {
	out, errOut io.Writer
	configPath  string
	output      string
	process     app.Process
}

// load reads the configuration, checks what it names, and makes the context of a use case of it.
func (c *command) load() (*app.Context, error) {
	cfg, err := app.Load(c.configPath)
	if err != nil {
		return nil, err
	}
	return &app.Context{Config: cfg, Process: &c.process, Warn: c.warn}, nil
}

// warn writes a warning to stderr.
func (c *command) warn(err error) { fmt.Fprintln(c.errOut, "hsm-kms: warning:", err) }

// run is the program: it reads args, writes, and returns the exit code.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	c := &command{out: out, errOut: errOut}
	defer c.process.EndBySignal()()
	root := c.root()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errOut)
	ran, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(errOut, "hsm-kms:", harmless(err.Error()))
	code, advice := exitUsage, app.Hint(err)
	if app.IsFinding(err) {
		code = exitFinding
	} else {
		advice = cmp.Or(advice, "see "+ran.CommandPath()+" -h")
	}
	if advice != "" {
		fmt.Fprintln(errOut, "hint:", harmless(advice))
	}
	return code
}

func (c *command) root() *cobra.Command {
	root := group(&cobra.Command{
		Use:   "hsm-kms",
		Short: "Kubernetes KMS v2 plugin whose master key never leaves a PKCS#11 HSM",
		Long: `hsm-kms wraps the data-encryption keys with which kube-apiserver encrypts Secrets. The key that wraps
them is made in a PKCS#11 HSM (SoftHSM will do on a laptop) and never leaves it.

Exit codes: 0 done or healthy, 1 a finding or a refusal, 2 usage, configuration, or cannot run.`,
		Example: `  hsm-kms keys create        # the first key of the ring
  hsm-kms serve              # run the plugin
  hsm-kms status             # ask a running plugin, as kube-apiserver does`,
		SilenceUsage:  true,
		SilenceErrors: true,
	})
	root.AddCommand(c.serve(), c.status(), c.keys(), c.audit(), c.etcd(), c.doctor(), c.manifests(), c.bench(), c.version())
	return root
}

// group makes a command that only has subcommands: alone it shows its help, and an unknown subcommand is an error,
// which cobra by itself would answer with help and success.
func group(cmd *cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return hint.Wrap(fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath()), "see "+cmd.CommandPath()+" -h")
		}
		return cmd.Help()
	}
	return cmd
}

// withConfig adds --config to a command that needs the token.
func (c *command) withConfig(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&c.configPath, "config", config.DefaultPath, "configuration file")
	return cmd
}

// withOutput adds -o.
func (c *command) withOutput(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVarP(&c.output, "output", "o", "table", "table for people, json for programs")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if c.output != "table" && c.output != "json" {
			return fmt.Errorf("unknown output %q: table and json are known", c.output)
		}
		return run(cmd, args)
	}
	return cmd
}
