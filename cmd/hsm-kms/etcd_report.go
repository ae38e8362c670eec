package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/encconfig"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// currentKey is what --require-key takes for the ring's current key.
const currentKey = "current"

type reportFlags struct {
	etcdFlags
	requireKey       string
	resources        []string
	encryptionConfig string
	accepted         []string // ranges
	allowEmpty       bool
}

func (c *command) etcdReport() *cobra.Command {
	f := &reportFlags{}
	cmd := c.withConfig(c.withOutput(&cobra.Command{
		Use:   "report",
		Short: "Report what etcd or a snapshot holds under which key, and in plain text",
		Long: `Reads every object below /registry at one revision. For each resource it reports how many objects are in plain text, under
another provider, and under each key_id with how many DEKs. It uses no HSM and needs no configuration file, except that
--require-key current, or with a fingerprint, logs in to the token to find the key. Exits 1 on a finding: a requirement that
is not met, a named resource or prefix without any object, an encrypted object of no known resource. Exits 2 when it could
not be found out.`,
		Example: `  hsm-kms etcd report
  hsm-kms etcd report --snapshot backup.db -o json
  hsm-kms etcd report --require-key current --resources secrets,widgets.example.com
  hsm-kms etcd report --prefix /kubernetes.io,/openshift.io --resource-path openshift
  hsm-kms etcd report --encryption-config /etc/kubernetes/encryption.yaml
  hsm-kms etcd report --endpoints https://10.0.0.1:2379 --cacert ca.crt --cert client.crt --key client.key`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.runReport(cmd.Context(), f) },
	}))
	f.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.requireKey, "require-key", "", "exit 1 unless all objects of --resources are under this `KEYID`, \"current\", or at least the first 8 digits of the fingerprint of a key of the ring")
	flags.StringSliceVar(&f.resources, "resources", nil, "which resources --require-key is about (default secrets); without it, what to report on (default all)")
	flags.BoolVar(&f.allowEmpty, "allow-empty", false, "a resource or --prefix without any object is no finding")
	acceptUnreadable(cmd, &f.accepted)
	flags.StringVar(&f.encryptionConfig, "encryption-config", "", "exit 1 unless everything is as this EncryptionConfiguration `file` would write it")
	return cmd
}

// acceptUnreadable is for commands that require something of what etcd holds.
func acceptUnreadable(cmd *cobra.Command, ranges *[]string) {
	cmd.Flags().StringArrayVar(ranges, "accept-unreadable", nil, "vouch that nothing in this unreadable `RANGE` of etcd matters to the requirement; recorded; repeatable")
}

func (c *command) runReport(ctx context.Context, f *reportFlags) error {
	if len(f.accepted) > 0 && f.requireKey == "" && f.encryptionConfig == "" {
		return hint.Wrap(errors.New("--accept-unreadable accepts nothing: without a requirement, a range that could not be read is no finding"),
			"add --require-key or --encryption-config; a report for keys retire has no acceptance: give it to keys retire")
	}
	opts := evidence.ReportOptions{AllowEmpty: f.allowEmpty}
	if err := checkResources(f.resources); err != nil {
		return err
	}
	required := evidence.Required{Resources: f.resources}
	switch {
	case f.requireKey == "":
		opts.Resources = f.resources
	case len(f.resources) == 0:
		required.Resources = []string{"secrets"}
	}
	var expected *encconfig.Config
	if f.encryptionConfig != "" {
		var err error
		if expected, err = loadEncryptionConfig(f.encryptionConfig); err != nil {
			return err
		}
	}
	if f.requireKey != "" {
		whole, err := c.wholeKeyID(ctx, f.requireKey)
		if err == nil {
			err = c.require(ctx, whole, &required)
		}
		if err != nil {
			return err
		}
	}
	report, err := c.buildReport(ctx, f, opts)
	if err != nil {
		return err
	}
	if f.requireKey != "" {
		report.RequireKey(required, f.allowEmpty)
		c.stillCurrent(ctx, report)
	}
	if expected != nil {
		expected.Compare(report, nil)
	}
	if f.requireKey != "" || expected != nil {
		report.RequireRead(f.accepted)
		for _, named := range f.accepted {
			if !slices.Contains(report.Accepted, named) {
				fmt.Fprintf(c.errOut, "hsm-kms: warning: --accept-unreadable %s: no range of this name was unreadable; copy it from unreadable in the JSON, FROM..TO\n", evidence.Printable(named))
			}
		}
	}
	if err := c.printReport(report); err != nil {
		return err
	}
	if n := len(report.Findings); n > 0 {
		return app.Finding(hint.Wrap(fmt.Errorf("%s: %s", counted(n, "finding"), summary(report.Findings)),
			"docs/evidence.md says what each finding means and what to do about it"))
	}
	return nil
}

func (c *command) buildReport(ctx context.Context, f *reportFlags, opts evidence.ReportOptions) (*evidence.Report, error) {
	progress, done := c.progress()
	defer done()
	return f.Report(ctx, opts, progress)
}

// checkResources looks at the form of --resources before anything is read.
func checkResources(entries []string) error {
	if err := evidence.CheckResources(entries); err != nil {
		return hint.Wrap(fmt.Errorf("--resources: %w", err), hint.Of(err))
	}
	return nil
}

func loadEncryptionConfig(path string) (*encconfig.Config, error) {
	expected, err := encconfig.Load(path)
	return expected, hint.Wrap(err, "give the file that kube-apiserver's --encryption-provider-config names")
}

// require finds out which key --require-key means. A key_id that was typed must have the form of one; that objects bear it is
// for the report to show.
func (c *command) require(ctx context.Context, key string, required *evidence.Required) error {
	if key == currentKey {
		return c.askCurrentKey(ctx, required)
	}
	if _, err := envelope.ParseKeyID(key); err != nil {
		return hint.Wrap(fmt.Errorf("--require-key %q: %w", key, err), "give "+currentKey+", or copy the whole KEY ID from: hsm-kms keys list -o json")
	}
	required.KeyID = key
	return nil
}

// fingerprintBegin is what a command that only reads takes for a key_id: the beginning of its fingerprint.
var fingerprintBegin = regexp.MustCompile(`^[0-9a-f]{8,16}$`)

// wholeKeyID connects to the tokens and returns the key_id whose fingerprint begins with text; a text that is not the beginning of
// a fingerprint is given back as it is. Commands that make or destroy something take whole key_ids alone.
func (c *command) wholeKeyID(ctx context.Context, text string) (string, error) {
	if !fingerprintBegin.MatchString(text) {
		return text, nil
	}
	a, err := c.load()
	if err != nil {
		return "", err
	}
	in, err := a.Connect(ctx)
	if err != nil {
		return "", err
	}
	defer in.Stop()
	var found []string
	for _, v := range in.Ring.Advance().Versions {
		if id := v.ID.String(); strings.HasPrefix(v.ID.FingerprintHex(), text) && !slices.Contains(found, id) {
			found = append(found, id)
		}
	}
	if len(found) != 1 {
		return "", hint.Wrap(fmt.Errorf("the fingerprints of %s of the ring begin with %s", counted(len(found), "key"), text), "copy the whole KEY ID from: hsm-kms keys list")
	}
	return found[0], nil
}

// askCurrentKey asks the token which key of the ring is current, as keys list does, and which are newer.
func (c *command) askCurrentKey(ctx context.Context, required *evidence.Required) error {
	a, err := c.load()
	if err != nil {
		return err
	}
	in, err := a.Connect(ctx)
	if err != nil {
		return err
	}
	defer in.Stop()
	exerciseErr := in.Ring.Exercise(ctx)
	view := in.Ring.Advance()
	if view.Current == nil {
		problem := errors.Join(view.Problem, exerciseErr)
		if problem == nil {
			problem = envelope.ErrNotProven
		}
		return fmt.Errorf("asking which key is current: %w", problem)
	}
	required.KeyID, required.Current = view.Current.ID.String(), true
	if required.Cluster, err = hsm.ClusterOf(in.Set.Bindings(ctx)); err != nil {
		fmt.Fprintln(c.errOut, "hsm-kms: warning: it is not clear which cluster the ring belongs to:", err)
	}
	for _, v := range view.Versions {
		if v.State != envelope.Pending {
			continue
		}
		newer := evidence.NewerKey{KeyID: v.ID.String(), State: "pending", From: v.Activation.UTC().Format(time.RFC3339)}
		if !v.Activation.After(time.Now()) {
			newer.State = "deferred"
		}
		required.Newer = append(required.Newer, newer)
	}
	return nil
}

// stillCurrent asks the ring again at the end: to read etcd, and to rewrite what it holds, takes time, and that everything is
// under a key that was current is no proof that it is under the one that is.
func (c *command) stillCurrent(ctx context.Context, report *evidence.Report) {
	asked := report.Required
	if asked == nil || !asked.Current {
		return
	}
	var now evidence.Required
	switch err := c.askCurrentKey(ctx, &now); {
	case err != nil:
		report.Add([]evidence.Finding{{Problem: "whether " + asked.KeyID + " is the current key still could not be found out: " + evidence.Printable(err.Error())}})
	case now.KeyID != asked.KeyID:
		asked.Current = false
		report.Add([]evidence.Finding{{Problem: asked.KeyID + " is not the current key any more: " + now.KeyID + " became current meanwhile"}})
	default:
		asked.Newer = append([]evidence.NewerKey{}, now.Newer...)
	}
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
	if f.Resource == "" && f.Objects > 0 {
		return counted(int(f.Objects), "object") + ": " + f.Problem
	}
	if f.Resource == "" {
		return f.Problem
	}
	if f.Objects == 0 {
		return evidence.Printable(f.Resource) + ": " + f.Problem
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
