package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/keyops"
	"github.com/hsm-kms/hsm-kms/evidence/migrate/kubeapi"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// clusterFlags say which cluster a ring belongs to.
type clusterFlags struct{ uid, kubeconfig string }

func (f *clusterFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.uid, "cluster", "", "the cluster that the ring belongs to: the `UID` of its namespace kube-system")
	cmd.Flags().StringVar(&f.kubeconfig, "kubeconfig", "", "ask the cluster of this `file` for that UID, and for nothing else")
	cmd.MarkFlagsMutuallyExclusive("cluster", "kubeconfig")
}

// cluster is the UID; empty: no flag was given.
func (f *clusterFlags) cluster(ctx context.Context) (string, error) {
	uid := f.uid
	if f.kubeconfig != "" {
		var err error
		if uid, err = kubeapi.ClusterUID(ctx, kubeapi.Config{Kubeconfig: f.kubeconfig, UserAgent: "hsm-kms/" + version}); err != nil {
			return "", err
		}
	} else if uid == "" {
		return "", nil
	}
	uid, err := hsm.ParseCluster(uid)
	return uid, hint.Wrap(err, "kubectl get namespace kube-system -o jsonpath='{.metadata.uid}' prints it")
}

// load is command.load, and the cluster beside it.
func (f *clusterFlags) load(ctx context.Context, c *command) (a *app.Context, uid string, err error) {
	if a, err = c.load(); err == nil {
		uid, err = f.cluster(ctx)
	}
	return a, uid, err
}

func (c *command) keysBind() *cobra.Command {
	f := &clusterFlags{}
	cmd := c.withConfig(c.withRing(c.withOutput(&cobra.Command{
		Use:   "bind",
		Short: "Write on the token which cluster the ring belongs to",
		Long: `Stores the UID of the cluster's namespace kube-system beside the keys, on every token of the configuration that accepts
it. keys retire compares it with etcd: a key that two clusters use must not be destroyed because one of them no longer
needs it. A binding never changes, and another cluster cannot bind a bound ring.`,
		Example: `  hsm-kms keys bind --kubeconfig /etc/kubernetes/admin.conf
  hsm-kms keys bind --cluster "$(kubectl get namespace kube-system -o jsonpath='{.metadata.uid}')"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.runKeysBind(cmd.Context(), f) },
	})))
	f.add(cmd)
	cmd.MarkFlagsOneRequired("cluster", "kubeconfig")
	return cmd
}

func (c *command) runKeysBind(ctx context.Context, f *clusterFlags) error {
	a, uid, err := f.load(ctx, c)
	if err != nil {
		return err
	}
	bound, err := keyops.Bind(ctx, a, uid)
	on := bound.Tokens()
	switch {
	case bound.Outcomes == nil:
		return err
	case c.structured():
		return errors.Join(err, c.json(bound))
	case len(on) == 0:
		return err
	}
	_, printErr := fmt.Fprintf(c.out, "The ring %s belongs to the cluster %s: it is written on %s.\n", bound.Ring, bound.Cluster, strings.Join(on, ", "))
	return errors.Join(err, printErr)
}
