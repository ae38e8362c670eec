package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/breakglass"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/internal/atomicfile"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

type getFlags struct {
	etcdFlags
	breakglass.Request
	to            string
	allowTerminal bool
	allowReadable bool
}

func (c *command) etcdGet() *cobra.Command {
	f := &getFlags{}
	cmd := c.withConfig(&cobra.Command{
		Use:   "get KEY --break-glass REASON",
		Short: "Recover one object from etcd or a snapshot with the HSM and no API server",
		Long: `Decrypts one object and writes it as YAML. Use it in emergencies only: it bypasses the API server's access control. It
requires a reason. Before it shows anything, it writes the user, the object and the reason to an audit trail of its own
beside audit.path. It refuses to write to a terminal, or to a file that others can read, unless you permit it.`,
		Example: `  hsm-kms etcd get /registry/secrets/kube-system/ca --break-glass "INC-42: API server lost" --to ca.yaml
  hsm-kms etcd get /registry/secrets/shop/db --snapshot backup.db --break-glass "INC-43" | kubectl create -f -`,
		Args: needs("KEY", "give the object's key in etcd, such as /registry/secrets/NAMESPACE/NAME", cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error { return c.runGet(cmd.Context(), f, args[0]) },
	})
	f.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.Reason, "break-glass", "", "the reason, for the auditor (required)")
	flags.StringVarP(&f.Form, "output", "o", "yaml", "yaml, json, or raw: the bytes as the API server serialised them")
	flags.StringVar(&f.to, "to", "", "write to this new `file`, readable to its owner only (default: standard output)")
	flags.BoolVar(&f.allowTerminal, "allow-terminal", false, "permit output to a terminal")
	flags.BoolVar(&f.allowReadable, "allow-readable-file", false, "permit output to a file that others can read")
	return cmd
}

func (c *command) runGet(ctx context.Context, f *getFlags, key string) error {
	if err := f.check(); err != nil {
		return err
	}
	a, err := c.load()
	if err != nil {
		return err
	}
	progress, done := c.progress()
	f.Key = key
	f.Open = func(ctx context.Context) ([]evidence.Source, func() error, error) {
		return f.etcdFlags.Open(ctx, progress)
	}
	text, err := breakglass.Recover(ctx, a, f.Request)
	done()
	defer clear(text)
	if err != nil {
		return err
	}
	if f.to == "" {
		if _, err := c.out.Write(text); err != nil {
			return fmt.Errorf("writing output: %w", err)
		}
		return nil
	}
	a.Acting(ctx) // a signal from here on comes too late
	return writeNew(f.to, text)
}

// check refuses before anything is opened.
func (f *getFlags) check() error {
	f.Reason = strings.TrimSpace(f.Reason)
	switch {
	case f.Reason == "":
		return app.Finding(hint.Wrap(errors.New("recovering an object bypasses the API server's access control and requires a reason"), "give the reason with --break-glass REASON"))
	case f.Form != "yaml" && f.Form != "json" && f.Form != "raw":
		return fmt.Errorf("unknown output %q: yaml, json and raw are known", f.Form)
	case len(f.Snapshots) > 1:
		return errors.New("more than one --snapshot is given, and an object comes from one")
	case f.to != "":
		return nil
	}
	info, err := os.Stdout.Stat()
	switch {
	case err != nil:
		return fmt.Errorf("checking standard output: %w", err)
	case term.IsTerminal(int(os.Stdout.Fd())) && !f.allowTerminal:
		return app.Finding(hint.Wrap(errors.New("standard output is a terminal, which keeps what it shows"), "use --to FILE, or add --allow-terminal"))
	case info.Mode().IsRegular() && info.Mode().Perm()&0o044 != 0 && !f.allowReadable:
		return app.Finding(hint.Wrap(fmt.Errorf("standard output is a file with mode %04o, which others may read", info.Mode().Perm()),
			"use --to FILE, set umask 077 before, or add --allow-readable-file"))
	}
	return nil
}

// writeNew writes a file that did not exist, for its owner alone. No part of the object must pass for the whole.
func writeNew(path string, text []byte) error {
	err := atomicfile.Create(path, text)
	if errors.Is(err, fs.ErrExist) {
		err = hint.Wrap(err, "--to names a file that must not exist yet")
	}
	if err != nil {
		return fmt.Errorf("writing the object: %w", err)
	}
	return nil
}
