package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/retire"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

type verifyFlags struct {
	etcdFlags
	opts       evidence.VerifyOptions
	allowEmpty bool
}

func (c *command) etcdVerify() *cobra.Command {
	f := &verifyFlags{}
	cmd := c.withConfig(c.withOutput(&cobra.Command{
		Use:   "verify",
		Short: "Open every DEK with the HSM and authenticate every object: the restore drill",
		Long: `Has the HSM open every distinct DEK that etcd or a snapshot holds, each once, and decrypts and authenticates every object
under it. It prints and keeps nothing that was decrypted. It cannot verify objects of other providers: their keys are in
the EncryptionConfiguration. Exits 1 when an object could not be opened, and names it with the reason.`,
		Example: `  hsm-kms etcd verify
  hsm-kms etcd verify --snapshot backup.db --config restored/config.yaml
  hsm-kms etcd verify --snapshot backup.db --sample 1   # every DEK, one object each`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.runVerify(cmd.Context(), f) },
	}))
	f.add(cmd)
	flags := cmd.Flags()
	flags.StringSliceVar(&f.opts.Resources, "resources", nil, "only these (default all)")
	flags.BoolVar(&f.allowEmpty, "allow-empty", false, "a resource of --resources without any object is no finding")
	flags.Int64Var(&f.opts.Sample, "sample", 0, "decrypt only so many objects under each DEK (default all); every DEK is opened")
	flags.IntVar(&f.opts.Parallel, "parallel", 0, "how many to open at once (default: the CPUs, at least 8)")
	return cmd
}

func (c *command) runVerify(ctx context.Context, f *verifyFlags) error {
	if f.opts.Sample < 0 || f.opts.Parallel < 0 {
		return errors.New("--sample and --parallel must not be negative")
	}
	if err := checkResources(f.opts.Resources); err != nil {
		return err
	}
	var err error
	if _, f.opts.Known, err = f.Read(); err != nil {
		return err
	}
	a, err := c.load()
	if err != nil {
		return err
	}
	rings, stop, err := a.ConnectAll(ctx)
	if err != nil {
		return err
	}
	defer stop()
	outcome, err := c.verify(ctx, f, retire.Remembering(rings, a.Config.Audit.Path))
	if err != nil {
		return err
	}
	if err := c.printVerification(outcome); err != nil {
		return err
	}
	switch {
	case !outcome.OK:
		return app.Finding(hint.Wrap(fmt.Errorf("%s could not be opened and %s undecodable", counted(int(outcome.Failed), "object"), grouped(outcome.Undecodable)),
			"restore the keys that are missing to the HSM, or take another backup; docs/restore.md"))
	case len(outcome.Missing) > 0 && !f.allowEmpty:
		return app.Finding(hint.Wrap(fmt.Errorf("no object was found of %s", strings.Join(outcome.Missing, ", ")), "see --prefix and --resources; --allow-empty accepts it"))
	case outcome.Objects == 0 && !f.allowEmpty:
		return app.Finding(hint.Wrap(errors.New("no object was found: nothing was verified"), "see --prefix and --resources"))
	}
	return nil
}

func (c *command) verify(ctx context.Context, f *verifyFlags, ring evidence.Opener) (outcome *evidence.Verification, err error) {
	progress, done := c.progress()
	defer done()
	sources, closeAll, err := f.Open(ctx, progress)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	return evidence.Verify(ctx, sources, ring, f.opts)
}

func (c *command) printVerification(v *evidence.Verification) error {
	if c.structured() {
		return c.json(v)
	}
	w := &lines{out: c.out}
	for _, source := range v.Sources {
		w.add("%s at revision %d", evidence.Printable(source.Name), source.Revision)
	}
	w.add("%s: %s verified, %s could not be opened, %s undecodable", counted(int(v.Objects), "object"), grouped(v.Verified), grouped(v.Failed), grouped(v.Undecodable))
	if v.Skipped > 0 {
		w.add("%s under a DEK that was opened were left out by --sample", counted(int(v.Skipped), "object"))
	}
	if v.Plaintext > 0 || v.Others > 0 {
		w.add("not for the HSM: %s in plain text, %s of other providers", grouped(v.Plaintext), grouped(v.Others))
	}
	w.add("")
	rows := [][]string{{" ", "UNDER", "KEY ID", "DEKS", "OPENED", "OBJECTS", "VERIFIED", "FAILED"}}
	for _, key := range v.Keys {
		mark := " "
		if key.Failed > 0 {
			mark = wrong
		}
		rows = append(rows, []string{
			mark, evidence.Printable(key.Provider), evidence.Printable(key.KeyID), grouped(key.DEKs), grouped(key.DEKs - key.DEKsFailed),
			grouped(key.Objects), grouped(key.Verified), grouped(key.Failed),
		})
	}
	err := errors.Join(w.err, c.headed(rows))
	if len(v.Failures) > 0 {
		w.add("\nCould not be opened:")
		w.problems(v.Failures, v.Failed+v.Undecodable)
	}
	w.notes(v.Sources)
	return errors.Join(err, w.err)
}
