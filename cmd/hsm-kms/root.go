package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/hsm/worker"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// The exit codes of every command.
const (
	exitOK      = 0 // done, healthy
	exitFinding = 1 // a finding or a refusal: unhealthy, not safe
	exitUsage   = 2 // usage, configuration, cannot run
)

// errFinding marks the errors that exit 1: the command could run, and the answer is no.
var errFinding = errors.New("finding")

// finding makes an error that exits 1.
func finding(err error) error { return &findingError{err} }

type findingError struct{ error }

func (f *findingError) Unwrap() []error { return []error{f.error, errFinding} }

// command is what the subcommands share: where they write and what the common flags say.
type command struct {
	out, errOut io.Writer
	configPath  string
	output      string
	workers     worker.Group   // of this process
	signals     chan os.Signal // that end the process; nil: nothing is done about them
}

// run is the program: it reads args, writes, and returns the exit code.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	c := &command{out: out, errOut: errOut, signals: make(chan os.Signal, 1)}
	defer c.endBySignal()()
	root := c.root()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errOut)
	ran, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(errOut, "hsm-kms:", harmless(err.Error()))
	code, advice := exitUsage, advise(err)
	if errors.Is(err, errFinding) {
		code = exitFinding
	} else {
		advice = cmp.Or(advice, "see "+ran.CommandPath()+" -h")
	}
	if advice != "" {
		fmt.Fprintln(errOut, "hint:", harmless(advice))
	}
	return code
}

// endBySignal ends the process by a signal as it would end anyway, but not while a worker of it logs in or makes or destroys
// a key: where this process is the first of a container, its end kills them.
func (c *command) endBySignal() (stop func()) {
	done := make(chan struct{})
	signal.Notify(c.signals, ending()...)
	go func() {
		select {
		case <-done:
		case sig := <-c.signals:
			c.workers.Hold()
			signal.Reset(sig)
			_ = unix.Kill(unix.Getpid(), sig.(unix.Signal)) //nolint:forcetypeassert // it is one
		}
	}()
	return func() { signal.Stop(c.signals); close(done) }
}

// ending are the signals that end a command: SIGTERM, and of SIGINT and SIGHUP those that are not ignored, as they are in a
// shell's background and under nohup. One that is ignored would not end it, and its workers would be held for good.
func ending() []os.Signal {
	all := []os.Signal{unix.SIGTERM}
	for _, sig := range []os.Signal{unix.SIGINT, unix.SIGHUP} {
		if !signal.Ignored(sig) {
			all = append(all, sig)
		}
	}
	return all
}

// untilSignal ends the context, and no longer the process, at SIGTERM or SIGINT.
func (c *command) untilSignal(ctx context.Context) (context.Context, context.CancelFunc) {
	if c.signals != nil {
		signal.Stop(c.signals)
	}
	return signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
}

// acting is the context of an act that cannot be taken back, until stop. A signal ends it and not the process: what is not
// begun yet is not begun, and the outcome of what is begun is told and recorded, which takes some callTimeouts at most.
func (c *command) acting(ctx context.Context) (act context.Context, stop func()) {
	act, end := signal.NotifyContext(ctx, ending()...)
	if c.signals == nil {
		return act, end
	}
	signal.Stop(c.signals)
	return act, func() {
		signal.Notify(c.signals, ending()...)
		end()
	}
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
