package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/doctor"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/manifests"
)

func (c *command) doctor() *cobra.Command {
	etcd := &etcdFlags{}
	options := doctor.Options{Prepare: app.PrepareStateDir, Tokens: func(cfg *config.Config) (hsm.Config, []hsm.TokenConfig, error) {
		return (&app.Context{Config: cfg, Process: &c.process}).HSM()
	}}
	cmd := c.withConfig(c.withRing(c.withOutput(&cobra.Command{
		Use:   "doctor",
		Short: "Check an installation, and report for each check what is wrong and what to do",
		Long: `Checks the configuration, the files of module and PIN, the tokens, their login counters, mechanisms and keys, the
encryption itself, the socket's folder, a running plugin, and the certificate of hsm-kms operate on this node. If you name them, it also checks kube-apiserver's
EncryptionConfiguration, and with --endpoints whether etcd holds the cluster that the ring belongs to, and nothing that
this EncryptionConfiguration cannot read.

It changes nothing on a token. It logs in as serve does: never with a PIN that was refused before, and never when the
token reports that the next wrong PIN would lock it. Run it as the plugin's user, so that it checks what that user may
read and write.

It checks read rings too; --ring NAME checks only the tokens and keys of that ring.

Exits 0 when nothing failed (there may be warnings), 1 when something failed.`,
		Example: `  hsm-kms doctor
  hsm-kms doctor --encryption-config /etc/kubernetes/enc/encryption.yaml
  hsm-kms doctor --encryption-config /etc/kubernetes/enc/encryption.yaml --step 1
  hsm-kms doctor --try-pin      # the PIN that was refused is right now: try it once more
  hsm-kms doctor -o json | jq '.[] | select(.result != "pass")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if options.Step != 0 && options.Step != 1 && options.Step != 2 {
				return fmt.Errorf("--step %d: 1 and 2 are known", options.Step)
			}
			options.ConfigPath, options.Ring, options.Operate = c.configPath, c.ring, new(manifests.Values).OperateKubeconfig()
			if cmd.Flags().Changed("endpoints") {
				options.ClusterUIDs = etcd.ClusterUIDs
				options.Report = func(ctx context.Context) (*evidence.Report, error) {
					return etcd.Report(ctx, evidence.ReportOptions{}, nil)
				}
			}
			return c.printFindings(doctor.Run(cmd.Context(), options))
		},
	})))
	etcd.addClient(cmd)
	endpoints := cmd.Flags().Lookup("endpoints")
	endpoints.Usage, endpoints.DefValue = endpoints.Usage+"; compares the cluster of the ring with etcd (default: etcd is not read)", "[]"
	cmd.Flags().StringVar(&options.EncryptionConfig, "encryption-config", "", "kube-apiserver's EncryptionConfiguration, to be compared")
	cmd.Flags().IntVar(&options.Step, "step", 0, "of a migration, with --encryption-config: at step 1 this plugin only reads, at step 2 it writes (default 2)")
	cmd.Flags().StringVar(&options.Socket, "socket", "", "socket of a running plugin (default: the configuration's, if one runs)")
	cmd.Flags().BoolVar(&options.TryPIN, "try-pin", false, "try a refused PIN once more; the attempt counts on the token if the PIN is wrong")
	return cmd
}

// printFindings prints the findings and fails when one of them is a failure.
func (c *command) printFindings(found []doctor.Finding) error {
	count := map[doctor.Result]int{}
	for _, f := range found {
		count[f.Result]++
	}
	if err := c.showFindings(found); err != nil {
		return err
	}
	if n := count[doctor.Fail]; n > 0 {
		return app.Finding(fmt.Errorf("%d of %d checks failed, %d warn", n, len(found), count[doctor.Warn]))
	}
	return nil
}

func (c *command) showFindings(found []doctor.Finding) error {
	if c.structured() {
		return c.json(found)
	}
	on := isColoured(c.out)
	rows := [][]string{{painted(on, usual, "RESULT"), "CHECK", "DETAIL"}}
	for _, f := range found {
		name := strings.TrimSpace(f.Check + " " + cmp.Or(f.Token, f.Ring))
		how := cmp.Or(map[doctor.Result]colour{doctor.Fail: red, doctor.Warn: yellow}[f.Result], usual)
		rows = append(rows, []string{painted(on, how, strings.ToUpper(string(f.Result))), name, strings.ReplaceAll(f.Detail, "\n", "; ")})
		if f.Hint != "" {
			rows = append(rows, []string{painted(on, usual, ""), "", "hint: " + f.Hint})
		}
	}
	return c.headed(rows)
}
