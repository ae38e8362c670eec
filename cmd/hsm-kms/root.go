package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/evidence"
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
	ring        string // --ring; empty: the ring that is written under
	output      string
	noHeaders   bool
	process     app.Process
}

// load reads the configuration, checks what it names, and makes the context of a use case of it.
func (c *command) load() (*app.Context, error) {
	a, err := app.Load(c.configPath, c.ring)
	if err != nil {
		return nil, err
	}
	a.Process, a.Warn = &c.process, c.warn
	return a, nil
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
	fmt.Fprintln(errOut, "hsm-kms:", harmless(evidence.InWords(err.Error())))
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
		Long: `hsm-kms wraps the data-encryption keys with which kube-apiserver encrypts Secrets. The wrapping key is made in a PKCS#11
HSM (on a laptop, SoftHSM takes its place) and never leaves it.

Exit codes: 0 done or healthy, 1 a finding or a refusal, 2 usage, configuration, or cannot run.`,
		Example: `  hsm-kms keys create        # the first key of the ring
  hsm-kms serve              # run the plugin
  hsm-kms status             # ask a running plugin, as kube-apiserver does`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
	})
	root.SetFlagErrorFunc(flagError)
	root.PersistentPreRunE = flagGroups
	root.AddCommand(c.serve(), c.status(), c.keys(), c.audit(), c.etcd(), c.hold(), c.operate(), c.config(), c.doctor(), c.manifests(), c.bench(), c.conformance(), c.version())
	root.AddCommand(c.packaging()...)
	root.InitDefaultCompletionCmd()
	if completion, _, err := root.Find([]string{"completion"}); err == nil {
		group(completion)
	}
	return root
}

// group makes a command that only has subcommands: alone it shows its help, and an unknown subcommand is an error,
// which cobra by itself would answer with help and success.
func group(cmd *cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return hint.Wrap(fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath()), didYouMean(cmd, args[0])+"see "+cmd.CommandPath()+" -h")
		}
		return cmd.Help()
	}
	return cmd
}

// needs reports in words that an argument is missing, and what it is. check judges the arguments when there are some.
func needs(name, advice string, check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return hint.Wrap(fmt.Errorf("%s needs an argument: %s", cmd.CommandPath(), name), advice+"; see "+cmd.CommandPath()+" -h")
		}
		return check(cmd, args)
	}
}

// didYouMean names what among the subcommands of cmd resembles what was typed; "" for nothing.
func didYouMean(cmd *cobra.Command, typed string) string {
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	if similar := cmd.SuggestionsFor(typed); len(similar) > 0 {
		return "did you mean " + strings.Join(similar, " or ") + "? "
	}
	return ""
}

// flagError says of an unknown flag which one resembles it: cobra does that for commands alone.
func flagError(cmd *cobra.Command, err error) error {
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok {
		return err
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	})
	if near := hint.Nearest(unknown.GetSpecifiedName(), names); near != "" {
		return hint.Wrap(err, "did you mean --"+near+"? see "+cmd.CommandPath()+" -h")
	}
	return err
}

// flagLists finds the lists of flags in cobra's errors about groups of flags: the group, and then what is set or missing of it.
var flagLists = regexp.MustCompile(`\[([^]]*)\]`)

// flagGroups says which flags are missing, or exclude each other. Cobra checks them too, later and in other words.
func flagGroups(cmd *cobra.Command, _ []string) error {
	err := cmd.ValidateFlagGroups()
	if err == nil {
		return nil
	}
	lists := flagLists.FindAllStringSubmatch(err.Error(), -1)
	flags := func(list int, between string) string {
		return "--" + strings.Join(strings.Fields(lists[list][1]), between+"--")
	}
	switch {
	case len(lists) == 1:
		return fmt.Errorf("%s is missing", flags(0, " or "))
	case strings.Contains(err.Error(), "missing"):
		return fmt.Errorf("%s are given together or not at all: %s is missing", flags(0, " and "), flags(1, " and "))
	}
	return fmt.Errorf("%s cannot be given together", flags(1, " and "))
}

// withConfig adds --config to a command that reads the configuration.
func (c *command) withConfig(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&c.configPath, "config", config.DefaultPath, "configuration file")
	return cmd
}

// withRing adds --ring to a command that can be about a read ring.
func (c *command) withRing(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&c.ring, "ring", "", "`name` of a ring of readRings in the configuration (default: its keyRing)")
	return cmd
}

// wide is the output with more columns, where a table has them; elsewhere it is the table.
const wide = "wide"

// outputs are what -o can be.
var outputs = []string{"table", wide, "json", "yaml"}

// withOutput adds -o and --no-headers.
func (c *command) withOutput(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVarP(&c.output, "output", "o", "table", "table or wide for people, json or yaml for programs")
	cmd.Flags().BoolVar(&c.noHeaders, "no-headers", false, "leave the headings of tables out")
	// It fails only where there is no such flag.
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputs, cobra.ShellCompDirectiveNoFileComp))
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !slices.Contains(outputs, c.output) {
			return fmt.Errorf("unknown output %q: table, wide, json and yaml are known", c.output)
		}
		return run(cmd, args)
	}
	return cmd
}
