package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/encconfig"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// currentKey is what --require-key takes for the ring's current key.
const currentKey = "current"

type reportFlags struct {
	etcdFlags
	requireKey       string
	resources        []string
	encryptionConfig string
}

func (c *command) etcdReport() *cobra.Command {
	f := &reportFlags{}
	cmd := c.withConfig(c.withOutput(&cobra.Command{
		Use:   "report",
		Short: "Tell what etcd or a snapshot holds under which key, and in plain text",
		Long: `Reads every object below /registry at one revision and tells, per resource, how many are plain text, under another
provider, and under each key_id with how many DEKs. No HSM is asked, and no configuration file is needed, unless
--require-key current asks which key is current. Exits 1 when a requirement is not met, 2 when a snapshot is damaged.`,
		Example: `  hsm-kms etcd report
  hsm-kms etcd report --snapshot backup.db -o json
  hsm-kms etcd report --require-key current --resources secrets,widgets.example.com
  hsm-kms etcd report --encryption-config /etc/kubernetes/encryption.yaml
  hsm-kms etcd report --endpoints https://10.0.0.1:2379 --cacert ca.crt --cert client.crt --key client.key`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.runReport(cmd.Context(), f) },
	}))
	f.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.requireKey, "require-key", "", "exit 1 unless all objects of --resources are under this `KEYID`, or \"current\"")
	flags.StringSliceVar(&f.resources, "resources", nil, "which resources --require-key is about (default secrets); without it, what to report on (default all)")
	flags.StringVar(&f.encryptionConfig, "encryption-config", "", "exit 1 unless everything is as this EncryptionConfiguration `file` would write it")
	return cmd
}

func (c *command) runReport(ctx context.Context, f *reportFlags) error {
	opts := evidence.ReportOptions{}
	required := f.resources
	switch {
	case f.requireKey == "":
		opts.Resources = f.resources
	case len(required) == 0:
		required = []string{"secrets"}
	}
	var expected *encconfig.Config
	if f.encryptionConfig != "" {
		var err error
		if expected, err = encconfig.Load(f.encryptionConfig); err != nil {
			return hint.Wrap(err, "give the file that kube-apiserver's --encryption-provider-config names")
		}
	}
	keyID := f.requireKey
	if keyID == currentKey {
		var err error
		if keyID, err = c.askCurrentKey(ctx); err != nil {
			return err
		}
	}
	report, err := c.buildReport(ctx, f, opts)
	if err != nil {
		return err
	}
	if keyID != "" {
		report.RequireKey(keyID, required)
	}
	if expected != nil {
		expected.Compare(report)
	}
	if err := c.printReport(report); err != nil {
		return err
	}
	if n := len(report.Findings); n > 0 {
		return finding(hint.Wrap(fmt.Errorf("%s: %s", counted(n, "finding"), summary(report.Findings)),
			"docs/evidence.md says what each finding means and what to do about it"))
	}
	return nil
}

func (c *command) buildReport(ctx context.Context, f *reportFlags, opts evidence.ReportOptions) (report *evidence.Report, err error) {
	progress, done := c.progress()
	defer done()
	sources, closeAll, err := f.open(ctx, progress)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	return evidence.Build(ctx, sources, opts)
}

// askCurrentKey asks the token which key of the ring is current, as keys list does.
func (c *command) askCurrentKey(ctx context.Context) (string, error) {
	cfg, err := c.load()
	if err != nil {
		return "", err
	}
	in, err := c.connectAll(ctx, cfg)
	if err != nil {
		return "", err
	}
	defer in.stop()
	exerciseErr := in.ring.Exercise(ctx)
	view := in.ring.View()
	if view.Current == nil {
		problem := errors.Join(view.Problem, exerciseErr)
		if problem == nil {
			problem = envelope.ErrNotProven
		}
		return "", fmt.Errorf("asking which key is current: %w", problem)
	}
	return view.Current.ID.String(), nil
}

// summary is the first finding, for the line of an error; all of them are in the report.
func summary(findings []evidence.Finding) string {
	text := describe(findings[0])
	if more := len(findings) - 1; more > 0 {
		text += fmt.Sprintf(", and %d more", more)
	}
	return text
}

// describe puts a finding in words.
func describe(f evidence.Finding) string {
	if f.Resource == "" {
		return f.Problem
	}
	return fmt.Sprintf("%s of %s: %s", counted(int(f.Objects), "object"), evidence.Printable(f.Resource), f.Problem)
}

// counted is "1 object", "2 objects".
func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return grouped(int64(n)) + " " + what + "s"
}
