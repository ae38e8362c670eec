package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/sources"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

func (c *command) etcd() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "etcd",
		Short: "What etcd or a snapshot holds under which key, and whether it can be opened",
		Long: `report lists what etcd or a snapshot holds under which key and in plain text; it does not use the HSM, unless
--require-key needs it. verify opens every DEK with the HSM and authenticates every object: the restore drill. get
recovers one object without an API server. migrate has the API servers rewrite what is not under the current key.`,
		Example: `  hsm-kms etcd report
  hsm-kms etcd report --snapshot backup.db --require-key current
  hsm-kms etcd verify --snapshot backup.db`,
	})
	cmd.AddCommand(c.etcdReport(), c.etcdVerify(), c.etcdGet(), c.etcdMigrate())
	return cmd
}

// etcdFlags say what to read.
type etcdFlags struct{ sources.Options }

// add is for commands that read etcd or snapshots.
func (f *etcdFlags) add(cmd *cobra.Command) {
	f.addLive(cmd)
	cmd.Flags().StringArrayVar(&f.Snapshots, "snapshot", nil, "read this `file` (of etcdctl or etcdutl, or member/snap/db) instead of etcd; repeatable")
	cmd.MarkFlagsMutuallyExclusive("snapshot", "endpoints")
	cmd.MarkFlagsMutuallyExclusive("snapshot", "etcd-servers-overrides")
}

// addLive is for commands that need the etcd of a running cluster.
func (f *etcdFlags) addLive(cmd *cobra.Command) {
	f.addClient(cmd)
	flags := cmd.Flags()
	flags.StringSliceVar(&f.Overrides, "etcd-servers-overrides", nil, "other etcds, in kube-apiserver's form: GROUP/RESOURCE#SERVER;SERVER")
	flags.StringArrayVar(&f.Layouts, "resource-path", nil, "`RESOURCE=PREFIX`: another API server keeps this resource below PREFIX in etcd; \"openshift\" names all of OpenShift's; repeatable")
}

// addClient is for commands that look into one etcd.
func (f *etcdFlags) addClient(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringSliceVar(&f.Endpoints, "endpoints", []string{sources.DefaultEndpoint}, "etcd's addresses, as etcdctl takes them")
	flags.StringVar(&f.CAFile, "cacert", "", "CA that signed etcd's certificate (default: kubeadm's, if it is there)")
	flags.StringVar(&f.CertFile, "cert", "", "client certificate (default: kubeadm's, if it is there)")
	flags.StringVar(&f.KeyFile, "key", "", "the client certificate's key (default: kubeadm's, if it is there)")
	flags.StringSliceVar(&f.Prefixes, "prefix", []string{sources.DefaultPrefix}, "kube-apiserver's --etcd-prefix; more than one is fine")
	cmd.MarkFlagsRequiredTogether("cert", "key")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := fromEtcdctl(cmd, os.Getenv); err != nil {
			return err
		}
		return run(cmd, args)
	}
}

// etcdctlFlags are the flags that etcdctl reads from its environment too.
var etcdctlFlags = [...]string{"endpoints", "cacert", "cert", "key"}

// etcdctlRefused are variables of etcdctl that would change who is asked, or how, and that hsm-kms does not follow.
var etcdctlRefused = [...]string{"ETCDCTL_USER", "ETCDCTL_PASSWORD", "ETCDCTL_INSECURE_TRANSPORT", "ETCDCTL_INSECURE_SKIP_TLS_VERIFY", "ETCDCTL_DISCOVERY_SRV"}

// fromEtcdctl takes from the environment what was not given, and says so: it decides which etcd is read. Flags go first. With
// --snapshot no etcd is read.
func fromEtcdctl(cmd *cobra.Command, getenv func(string) string) error {
	flags := cmd.Flags()
	if flags.Changed("snapshot") {
		return nil
	}
	for _, name := range etcdctlRefused {
		if getenv(name) != "" {
			return hint.Wrap(fmt.Errorf("%s is set, and hsm-kms reads etcd with a client certificate alone", name),
				"unset "+name+" for hsm-kms, and give --cacert, --cert and --key; a secret in the environment is open to every process of the same user")
		}
	}
	var taken []string
	for _, name := range etcdctlFlags {
		variable := "ETCDCTL_" + strings.ToUpper(name)
		value := getenv(variable)
		if value == "" || flags.Changed(name) {
			continue
		}
		if err := flags.Set(name, value); err != nil {
			return fmt.Errorf("reading %s: %w", variable, err)
		}
		taken = append(taken, variable+"="+value)
	}
	if len(taken) > 0 {
		fmt.Fprintln(cmd.ErrOrStderr(), "hsm-kms: from the environment:", harmless(strings.Join(taken, " ")))
	}
	if flags.Changed("cert") != flags.Changed("key") {
		return hint.Wrap(errors.New("a client certificate without its key, or a key without its certificate"), "give both --cert and --key, or set ETCDCTL_CERT and ETCDCTL_KEY")
	}
	return nil
}
