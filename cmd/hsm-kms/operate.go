package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/validate/content"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator/state"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/sources"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
	"github.com/hsm-kms/hsm-kms/evidence/migrate"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/duration"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

type operateFlags struct {
	migrateFlags
	operator.Config // but what migrateFlags have
	once            bool
}

// The bounds of --interval. Above, a lost node would be noticed too late.
const (
	shortestInterval = time.Second
	longestInterval  = time.Hour
)

// longestRecheck is the upper bound of --recheck: how old the proof for a retirable key may become.
const longestRecheck = 24 * time.Hour

func (c *command) operate() *cobra.Command {
	f := &operateFlags{migrateFlags: migrateFlags{opts: migrate.Defaults()}}
	cmd := c.withConfig(c.withOutput(&cobra.Command{
		Use:   "operate",
		Short: "Do what follows a rotation: wait for every node, migrate, prove, name the key that can go",
		Long: `Runs beside "serve" on every control-plane node, under an identity of its own. Each instance publishes what the
plugin of its node says in a Lease; one of them leads. When every node has the new key, the leader has each API server
write an object and looks in etcd what it wrote, has the API servers rewrite what is under an older key, and reads etcd
until nothing is, twice, --settle apart. Then it prints the command with which a person retires the old key.

It reads no PIN, opens no token, and makes and destroys no key. It goes on when API servers, etcd or plugins are away.
The state is in the KeyRing that "kubectl get keyrings" shows (hsm-kms manifests operator prints what it needs), in
Events and in the log. docs/operate.md has the states and what each asks for.

--once makes one pass and ends: run it from a timer on every node, and give the timer's interval with --interval. It
exits 1 when a person has to do something, 2 when it cannot run.`,
		Example: `  hsm-kms operate --kubeconfig /etc/hsm-kms/operate.kubeconfig
  hsm-kms operate --kubeconfig /etc/hsm-kms/operate.kubeconfig --resources secrets,configmaps
  hsm-kms operate --once --interval 5m --kubeconfig /etc/hsm-kms/operate.kubeconfig -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.runOperate(cmd.Context(), f) },
	}))
	f.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.opts.Namespace, "namespace", "hsm-kms", "where the Leases are, and the objects that show what an API server writes; one for each ring")
	flags.StringVar(&f.Node, "node", "", "name of this node, different on each (default: the name of this machine)")
	flags.StringVar(&f.StateDir, "state-dir", operator.DefaultStateDir, "folder for the clean reports of etcd, which keys retire takes as --evidence")
	duration.Var(flags, &f.Interval, "interval", 30*time.Second, "time between two writes of this node's Lease, and between two passes of the leader; a Lease that stays the same for four of them counts no longer")
	duration.Var(flags, &f.Settle, "settle", gate.DefaultSettle, "how far apart the two clean readings of etcd are")
	duration.Var(flags, &f.Recheck, "recheck", time.Hour, "how often etcd is read while nothing is to be done")
	flags.StringVar((*string)(&f.Engine), "engine", string(operator.EngineOwn), "who rewrites: \"own\", or \"svm\": kube-controller-manager first (StorageVersionMigration v1, Kubernetes 1.37 and later), for built-in resources but Events")
	flags.StringVar(&f.Cluster, "cluster", "", "the cluster that the ring belongs to, as keys list shows it: the `UID` of its namespace kube-system; compared with etcd (default: not compared)")
	flags.StringVar(&f.HTTPAddress, "http-address", "127.0.0.1:9809", "host:port of /metrics, which asks for no password; empty for none")
	flags.BoolVar(&f.once, "once", false, "make one pass and end")
	return cmd
}

func (c *command) runOperate(ctx context.Context, f *operateFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	cfg, err := config.Load(c.configPath)
	if err != nil {
		return err
	}
	if err := c.fillOperate(f, cfg); err != nil {
		return err
	}
	o, err := operator.New(f.Config)
	if err != nil {
		return err
	}
	ctx, stop := c.process.UntilSignal(ctx)
	defer stop()
	if !f.once {
		f.Log.Info("hsm-kms operate", "version", version, "node", f.Node, "ring", f.Ring, "namespace", f.opts.Namespace, "settle", duration.String(f.Settle))
		o.Run(ctx)
		return nil
	}
	result, err := o.Once(ctx)
	if ctx.Err() != nil {
		return app.Finding(hint.Wrap(errors.New("stopped in the middle of the pass"), "run it again: it does what is left"))
	}
	if err != nil {
		err = hint.Wrap(err, cmp.Or(hint.Of(err), operator.APIHint))
	}
	return c.printPass(f, result, err)
}

// fillOperate checks the flags and completes f from them, the configuration, the host name and the EncryptionConfiguration file.
func (c *command) fillOperate(f *operateFlags, cfg *config.Config) (err error) {
	switch {
	case f.Interval < shortestInterval || f.Interval > longestInterval:
		return fmt.Errorf("--interval %s: %s to %s", duration.String(f.Interval), duration.String(shortestInterval), duration.String(longestInterval))
	case f.Engine != operator.EngineOwn && f.Engine != operator.EngineSVM:
		return hint.Wrap(fmt.Errorf("--engine %q is neither %s nor %s", f.Engine, operator.EngineOwn, operator.EngineSVM), "docs/operate.md#who-rewrites says what each does")
	case f.StateDir == "":
		return errors.New("--state-dir names no folder")
	case f.Settle < 0:
		return fmt.Errorf("--settle %s is negative", duration.String(f.Settle))
	case f.Recheck < state.FreshFor || f.Recheck > longestRecheck:
		return fmt.Errorf("--recheck %s: %s to %s", duration.String(f.Recheck), duration.String(state.FreshFor), duration.String(longestRecheck))
	}
	if f.HTTPAddress != "" {
		if err := config.CheckAddress(f.HTTPAddress); err != nil {
			return hint.Wrap(fmt.Errorf("--http-address %q is not host:port: %w", f.HTTPAddress, err), `write it as 127.0.0.1:9809 or [::1]:9809, or "" for none`)
		}
	}
	if f.Hostname, err = os.Hostname(); err != nil {
		return fmt.Errorf("asking for the name of this machine: %w", err)
	}
	if f.Node == "" {
		f.Node = strings.ToLower(f.Hostname)
	}
	if wrong := content.IsDNS1123Subdomain(f.Node); len(wrong) > 0 {
		return hint.Wrap(fmt.Errorf("--node %q is no name: %s", f.Node, strings.Join(wrong, ", ")), "give one such as cp-1")
	}
	if f.Cluster != "" {
		if f.Cluster, err = hsm.ParseCluster(f.Cluster); err != nil {
			return hint.Wrap(err, "hsm-kms keys list shows the one that the ring is bound to")
		}
	}
	if f.opts.Prefixes, f.opts.Known, err = f.Read(); err != nil {
		return err
	}
	if f.encryption != "" {
		if f.opts.Expected, err = loadEncryptionConfig(f.encryption); err != nil {
			return err
		}
	}
	f.Ring, f.Socket, f.Version = cfg.KeyRing, cfg.Socket.Path, version
	f.kube.UserAgent = "hsm-kms/" + version
	f.Kube, f.Groups, f.Etcd, f.Migrate = f.kube, f.groups, f.Options, f.opts
	f.Log = slog.New(slog.NewJSONHandler(c.errOut, nil))
	if f.StateDir, err = filepath.Abs(f.StateDir); err != nil { // it stands in the command
		return fmt.Errorf("--state-dir: %w", err)
	}
	f.RetireFlags, err = f.retireFlags(c.configPath)
	return err
}

// retireFlags are what keys retire has to be told too.
func (f *operateFlags) retireFlags(configPath string) (string, error) {
	path, err := filepath.Abs(configPath)
	if err != nil {
		return "", fmt.Errorf("--config: %w", err)
	}
	var words []string
	add := func(flag string, values ...string) {
		for _, value := range values {
			words = append(words, flag+" '"+strings.ReplaceAll(value, "'", `'\''`)+"'")
		}
	}
	if path != config.DefaultPath {
		add("--config", path)
	}
	if !slices.Equal(f.Endpoints, []string{sources.DefaultEndpoint}) {
		add("--endpoints", strings.Join(f.Endpoints, ","))
	}
	if !slices.Equal(f.Prefixes, []string{sources.DefaultPrefix}) {
		add("--prefix", strings.Join(f.Prefixes, ","))
	}
	if f.CAFile != "" {
		add("--cacert", f.CAFile)
	}
	if f.CertFile != "" {
		add("--cert", f.CertFile)
		add("--key", f.KeyFile)
	}
	add("--etcd-servers-overrides", f.Overrides...)
	add("--resource-path", f.Layouts...)
	if f.Settle != gate.DefaultSettle {
		add("--settle", f.Settle.String())
	}
	return strings.Join(words, " "), nil
}

// printPass prints what a pass came to; failed: why something could not be asked, read or written. A state that asks for a
// person is a finding.
func (c *command) printPass(f *operateFlags, result *operator.Result, failed error) error {
	if result == nil {
		return failed
	}
	status := result.Status
	if c.output == "json" {
		if err := c.json(result); err != nil {
			return err
		}
	} else if err := c.table(passRows(f, result)); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	if status != nil && status.State == state.Blocked {
		return app.Finding(hint.Wrap(errors.New(status.Message), status.Hint))
	}
	return nil
}

func passRows(f *operateFlags, result *operator.Result) [][]string {
	if result.Status == nil {
		return [][]string{{"node", f.Node}, {"leader", result.Leader}}
	}
	s := result.Status
	rows := [][]string{{"state", string(s.State)}, {"message", harmless(s.Message)}}
	for _, row := range [][2]string{{"next step", s.NextStep}, {"current key", s.CurrentKey}, {"nodes", s.Nodes}, {"retirable", strings.Join(s.Retirable, ", ")}, {"retire it with", s.Command}} {
		if row[1] != "" {
			rows = append(rows, []string{row[0], harmless(row[1])})
		}
	}
	return append(rows, []string{"leader", s.Leader})
}
