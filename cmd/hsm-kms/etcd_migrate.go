package main

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/validate/content"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/migrate"
	"github.com/hsm-kms/hsm-kms/evidence/migrate/kubeapi"
	"github.com/hsm-kms/hsm-kms/internal/duration"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// migrateFlags are those of etcd migrate and of operate.
type migrateFlags struct {
	etcdFlags
	kube       kubeapi.Config
	requireKey string
	groups     []string
	encryption string
	opts       migrate.Options
}

func (c *command) etcdMigrate() *cobra.Command {
	f := &migrateFlags{opts: migrate.Defaults()}
	cmd := c.withConfig(c.withOutput(&cobra.Command{
		Use:   "migrate",
		Short: "Have the API servers rewrite what is not under the required key",
		Long: `First it has every API server write something, reads from etcd whether that is under the required key, and waits until it
is for all of them. A migration through an API server that has not noticed the rotation would prove nothing. Then it has
them rewrite what is not under the key, at a limited rate, and ends with the report. It reads no Secret's content: an API
server is asked to store an object unchanged. All state is in etcd: after it was stopped or killed, run it again, and it
continues with the rest.

It addresses each API server directly, with the kubeconfig's identity: at the addresses that they publish, or at those of
--server. Exits 1 when something is not under the key at the end, or when not every API server writes under it; 2 when
that could not be found out.`,
		Example: `  hsm-kms etcd migrate --dry-run
  hsm-kms etcd migrate
  hsm-kms etcd migrate --resources secrets,widgets.example.com --rate 200 --parallel 8
  hsm-kms etcd migrate --encryption-config /etc/kubernetes/enc/encryption.yaml   # after a provider was renamed
  hsm-kms etcd migrate --server https://10.0.0.1:6443 --server https://10.0.0.2:6443 --kubeconfig admin.conf`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.runMigrate(cmd.Context(), f) },
	}))
	f.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.requireKey, "require-key", currentKey, "`KEYID` under which everything is to be, or \"current\"")
	flags.StringVar(&f.opts.Namespace, "namespace", f.opts.Namespace, "where the Secrets and ConfigMaps are made and deleted that show what an API server writes")
	duration.Var(flags, &f.opts.Wait, "wait", f.opts.Wait, "how long to wait until every API server writes under the key")
	flags.BoolVar(&f.opts.DryRun, "dry-run", false, "write nothing: count what would be rewritten, and name the API servers")
	return cmd
}

// add is for the commands that have API servers rewrite what etcd holds.
func (f *migrateFlags) add(cmd *cobra.Command) {
	f.addLive(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.kube.Kubeconfig, "kubeconfig", "", "`file` (default: $KUBECONFIG, ~/.kube/config, "+kubeapi.AdminKubeconfig+")")
	flags.StringVar(&f.kube.Context, "context", "", "context in the kubeconfig (default: its current one)")
	flags.StringArrayVar(&f.kube.Servers, "server", nil, "`URL` of an API server itself, not of a load balancer; give all of them (default: endpointslice default/kubernetes)")
	flags.StringArrayVar(&f.groups, "group-server", nil, "`GROUP=URL` of an API server that kube-apiserver passes a group on to (an APIService with a Service); give all of them")
	flags.StringVar(&f.encryption, "encryption-config", "", "the API servers' EncryptionConfiguration `file`: also rewrite what is under another provider name than it has")
	flags.StringVar(&f.kube.ServerName, "tls-server-name", "", "name in the API servers' certificates (default: the kubeconfig's, or their address)")
	flags.StringSliceVar(&f.opts.Resources, "resources", f.opts.Resources, "what to migrate, as an EncryptionConfiguration names it")
	flags.BoolVar(&f.opts.AllowEmpty, "allow-empty", false, "a resource of --resources without any object is no finding")
	acceptUnreadable(cmd, &f.opts.Accepted)
	flags.Float64Var(&f.opts.Rate, "rate", f.opts.Rate, "objects per second at most, over all API servers")
	flags.IntVar(&f.opts.Parallel, "parallel", f.opts.Parallel, "requests at a time")
}

// check looks at the flags' form before anything is read.
func (f *migrateFlags) check() error {
	switch rate := f.opts.Rate; {
	case math.IsNaN(rate), math.IsInf(rate, 0), rate <= 0, f.opts.Parallel <= 0, len(f.opts.Resources) == 0:
		return errors.New("--rate and --parallel must be numbers above 0, and --resources must name one")
	case f.opts.Wait < 0:
		return fmt.Errorf("--wait %s is negative", duration.String(f.opts.Wait))
	}
	if err := checkResources(f.opts.Resources); err != nil {
		return err
	}
	if wrong := content.IsDNS1123Label(f.opts.Namespace); len(wrong) > 0 {
		return hint.Wrap(fmt.Errorf("--namespace %q is not a valid name", f.opts.Namespace), "name a namespace that is there, such as default")
	}
	return nil
}

func (c *command) runMigrate(ctx context.Context, f *migrateFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	ctx, stop := c.process.UntilSignal(ctx)
	defer stop()
	context.AfterFunc(ctx, stop) // the second one ends the process at once
	out, err := c.migrate(ctx, f)
	switch {
	case out == nil && ctx.Err() != nil:
		return app.Finding(hint.Wrap(errors.New("stopped before anything was rewritten"), "run it again"))
	case out == nil:
		return err
	}
	if printErr := c.printMigration(out); printErr != nil {
		return errors.Join(printErr, err)
	}
	return verdict(out, err)
}

// migrate connects and runs. Without an outcome it did not come to anything.
func (c *command) migrate(ctx context.Context, f *migrateFlags) (out *migrate.Outcome, err error) {
	opts := f.opts
	if opts.Prefixes, opts.Known, err = f.Read(); err != nil {
		return nil, err
	}
	var required evidence.Required
	if err := c.require(ctx, f.requireKey, &required); err != nil {
		return nil, err
	}
	opts.RequiredKey, opts.Current, opts.Newer, opts.Cluster = required.KeyID, required.Current, required.Newer, required.Cluster
	if f.encryption != "" {
		if opts.Expected, err = loadEncryptionConfig(f.encryption); err != nil {
			return nil, err
		}
	}
	f.kube.UserAgent = "hsm-kms/" + version
	servers, err := kubeapi.Connect(ctx, f.kube)
	if err != nil {
		return nil, err
	}
	for _, server := range servers {
		opts.Servers = append(opts.Servers, server)
	}
	if opts.Groups, err = kubeapi.ConnectGroups(ctx, f.kube, servers[0], f.groups); err != nil {
		return nil, err
	}
	if len(f.kube.Servers) > 0 {
		if n, err := kubeapi.Published(ctx, f.kube); err == nil && n > len(servers) {
			fmt.Fprintf(c.errOut, "hsm-kms: warning: the cluster publishes %d API servers, and %d is what --server names: what the others write is not proven\n", n, len(servers))
		}
	}
	watch := c.watchMigration()
	defer watch.clear()
	opts.Progress, opts.Say = watch.progress, watch.say
	sources, closeAll, err := f.Open(ctx, watch.reading)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	opts.Sources = sources
	out, err = migrate.Run(ctx, opts)
	if out != nil && out.Report != nil {
		c.stillCurrent(ctx, out.Report)
		out.Newer = out.Report.Required.Newer
	}
	return out, err
}

// verdict turns the outcome into the command's end.
func verdict(out *migrate.Outcome, err error) error {
	switch {
	case out.Interrupted:
		return app.Finding(hint.Wrap(fmt.Errorf("stopped with %s rewritten", counted(int(out.Rewritten), "object")), "run it again: it continues with the rest"))
	case errors.Is(err, migrate.ErrUnproven):
		return app.Finding(unproven(out))
	case err != nil:
		return err
	case out.DryRun || out.Clean():
		return nil
	}
	n := len(out.Report.Findings)
	err = fmt.Errorf("%s: %s", counted(n, "finding"), summary(out.Report.Findings))
	advice := "docs/evidence.md says what each finding means and what to do about it"
	if out.Failed > 0 {
		err = fmt.Errorf("%w; %s could not be rewritten, the first: %s: %s", err, counted(int(out.Failed), "object"),
			evidence.Printable(out.Failures[0].Key), evidence.Printable(out.Failures[0].Reason))
		advice = "fix the cause of each failure, then run it again: it continues with the rest"
	}
	return app.Finding(hint.Wrap(err, advice))
}

// unproven says of the first API server why it is not proven, and what to look at.
func unproven(out *migrate.Outcome) error {
	var open []migrate.Proof
	for _, p := range out.Servers {
		if !p.OK && !p.Skipped {
			open = append(open, p)
		}
	}
	text := migrate.Describe(open[0])
	if more := len(open) - 1; more > 0 {
		text += fmt.Sprintf(", and %d more", more)
	}
	advice := "see hsm-kms status and the EncryptionConfiguration on that node; docs/migration.md#what-does-each-api-server-write"
	switch {
	case open[0].Behind != "":
		advice = "give --group-server for each of them, or leave the resource out of --resources; docs/evidence.md#aggregated-apis"
	case open[0].Error != "":
		advice = "check that the API server answers, that the kubeconfig's user may do what docs/evidence.md lists, and that --endpoints and --prefix are this cluster's"
	}
	return hint.Wrap(fmt.Errorf("%w: %s", migrate.ErrUnproven, text), advice)
}
