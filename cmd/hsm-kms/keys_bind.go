package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/doctor"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence/migrate/kubeapi"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// whoseRing is how to find out which cluster uses a ring.
const whoseRing = "find out whose it is: hsm-kms keys list names the cluster that the ring is bound to, and kubectl get namespace kube-system -o jsonpath='{.metadata.uid}' names yours; each cluster needs a keyRing of its own"

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

func (c *command) keysBind() *cobra.Command {
	f := &clusterFlags{}
	cmd := c.withConfig(c.withOutput(&cobra.Command{
		Use:   "bind",
		Short: "Write on the token which cluster the ring belongs to",
		Long: `Stores the UID of the cluster's namespace kube-system beside the keys, on every token of the configuration that
takes it. keys retire compares it with etcd: a key that two clusters use must not be destroyed because one of them no
longer needs it. A binding is never changed. What one cluster has bound, another cannot.`,
		Example: `  hsm-kms keys bind --kubeconfig /etc/kubernetes/admin.conf
  hsm-kms keys bind --cluster "$(kubectl get namespace kube-system -o jsonpath='{.metadata.uid}')"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.runKeysBind(cmd.Context(), f) },
	}))
	f.add(cmd)
	cmd.MarkFlagsOneRequired("cluster", "kubeconfig")
	return cmd
}

// boundJSON is what became of a binding. Fields and names are a contract.
type boundJSON struct {
	Ring     string        `json:"ring"`
	Cluster  string        `json:"cluster"`
	Outcomes []boundOnJSON `json:"outcomes"`
}

type boundOnJSON struct {
	Token   string `json:"token"`
	Outcome string `json:"outcome"` // bound, unbound or unknown
}

func (c *command) runKeysBind(ctx context.Context, f *clusterFlags) error {
	cfg, err := c.load()
	if err != nil {
		return err
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
	in, err := c.connectAll(ctx, cfg)
	if err != nil {
		return err
	}
	defer in.stop()
	if len(in.ring.View().Versions) == 0 {
		return finding(hint.Wrap(fmt.Errorf("the ring %s is empty", cfg.KeyRing), "make the first key and bind the ring with: hsm-kms keys create --cluster "+uid))
	}
	said, bindErr := c.bind(ctx, in, cfg.KeyRing, uid)
	if said.Outcomes == nil {
		return bindErr
	}
	on := said.on("bound")
	if len(on) == 0 && bindErr == nil {
		bindErr = finding(hint.Wrap(fmt.Errorf("the ring %s is bound to no cluster: no token takes the binding", cfg.KeyRing), "without it, keys retire asks for --sole-cluster: see docs/rotation.md"))
	}
	if c.output == "json" {
		return errors.Join(bindErr, c.json(said))
	}
	if len(on) == 0 {
		return bindErr
	}
	_, err = fmt.Fprintf(c.out, "The ring %s belongs to the cluster %s: it is written on %s.\n", cfg.KeyRing, uid, strings.Join(on, ", "))
	return errors.Join(bindErr, err)
}

func (b boundJSON) on(outcome string) (tokens []string) {
	for _, o := range b.Outcomes {
		if o.Outcome == outcome {
			tokens = append(tokens, o.Token)
		}
	}
	return tokens
}

// bind writes the binding. A token that refuses it is a warning. Without outcomes nothing was begun.
func (c *command) bind(ctx context.Context, in *tokensInUse, ring, uid string) (boundJSON, error) {
	said := boundJSON{Ring: ring, Cluster: uid}
	act, stop := c.acting(ctx)
	all, err := in.set.Bind(act, uid)
	stop()
	if errors.Is(err, hsm.ErrOtherCluster) || errors.Is(err, envelope.ErrAmbiguous) {
		return said, finding(hint.Wrap(fmt.Errorf("binding the ring %s: %w", ring, err), whoseRing))
	}
	if err != nil {
		return said, fmt.Errorf("binding the ring %s: %w", ring, err)
	}
	for _, b := range all {
		outcome := map[hsm.Outcome]string{hsm.Made: "bound", hsm.NotMade: "unbound", hsm.Unknown: "unknown"}[b.Outcome]
		said.Outcomes = append(said.Outcomes, boundOnJSON{b.Token, outcome})
		switch b.Outcome {
		case hsm.Unknown:
			err = errors.Join(err, hint.Wrap(fmt.Errorf("whether the token %s binds the ring now is unknown: %w", b.Token, b.Err), "when the HSM answers again, run: hsm-kms keys list"))
		case hsm.NotMade:
			fmt.Fprintf(c.errOut, "hsm-kms: warning: the token %s does not take the binding of the ring to its cluster: %v\n", b.Token, b.Err)
		}
	}
	return said, err
}

// clusterOf is the cluster that the ring belongs to, by the tokens that can be read; empty: none says it.
func clusterOf(ctx context.Context, in *tokensInUse) (string, error) {
	read := slices.DeleteFunc(in.set.Bindings(ctx), func(b hsm.Binding) bool { return b.Err != nil && !errors.Is(b.Err, envelope.ErrAmbiguous) })
	uid, err := hsm.ClusterOf(read)
	if err != nil {
		return "", finding(hint.Wrap(fmt.Errorf("which cluster the ring belongs to is not clear: %w", err), whoseRing))
	}
	return uid, nil
}
