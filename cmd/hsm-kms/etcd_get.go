package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc/codes"
	"sigs.k8s.io/yaml"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/retire"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/manifest"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
	"github.com/hsm-kms/hsm-kms/kmsplugin/audit"
	"github.com/hsm-kms/hsm-kms/kmsplugin/problem"
)

type getFlags struct {
	etcdFlags
	reason        string
	form          string
	to            string
	allowTerminal bool
	allowReadable bool
}

func (c *command) etcdGet() *cobra.Command {
	f := &getFlags{}
	cmd := c.withConfig(&cobra.Command{
		Use:   "get KEY --break-glass REASON",
		Short: "Recover one object from etcd or a snapshot with the HSM and no API server",
		Long: `Decrypts one object and writes it as YAML. For emergencies only: it goes past the API server's access control. So it
requires a reason, writes who, what and why to an audit trail of its own beside audit.path before it shows anything, and
refuses to write to a terminal or to a file that others may read unless told to.`,
		Example: `  hsm-kms etcd get /registry/secrets/kube-system/ca --break-glass "INC-42: API server lost" --to ca.yaml
  hsm-kms etcd get /registry/secrets/shop/db --snapshot backup.db --break-glass "INC-43" | kubectl create -f -`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return c.runGet(cmd.Context(), f, args[0]) },
	})
	f.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.reason, "break-glass", "", "why this is done, in words for the auditor (required)")
	flags.StringVarP(&f.form, "output", "o", "yaml", "yaml, json, or raw: the bytes as the API server serialised them")
	flags.StringVar(&f.to, "to", "", "write to this new `file`, readable to its owner only (default: standard output)")
	flags.BoolVar(&f.allowTerminal, "allow-terminal", false, "show it on a terminal all the same")
	flags.BoolVar(&f.allowReadable, "allow-readable-file", false, "write to a file that others may read all the same")
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
	if a.Config.Audit.Path == "" {
		return app.Finding(hint.Wrap(errors.New("audit.path is empty in the configuration, and without a record nothing is recovered"), "set audit.path"))
	}
	text, err := c.recover(ctx, a, f, key)
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
	return writeNew(f.to, text)
}

// check refuses before anything is opened.
func (f *getFlags) check() error {
	f.reason = strings.TrimSpace(f.reason)
	switch {
	case f.reason == "":
		return app.Finding(hint.Wrap(errors.New("recovering an object goes past the API server's access control and requires a reason"), "say why with --break-glass REASON"))
	case f.form != "yaml" && f.form != "json" && f.form != "raw":
		return fmt.Errorf("unknown output %q: yaml, json and raw are known", f.form)
	case len(f.snapshots) > 1:
		return errors.New("one --snapshot at a time: which of them the object is to come from must be clear")
	case f.to != "":
		return nil
	}
	info, err := os.Stdout.Stat()
	switch {
	case err != nil:
		return fmt.Errorf("looking at standard output: %w", err)
	case term.IsTerminal(int(os.Stdout.Fd())) && !f.allowTerminal:
		return app.Finding(hint.Wrap(errors.New("the object would be shown on a terminal, which keeps what it shows"), "use --to FILE, or say --allow-terminal"))
	case info.Mode().IsRegular() && info.Mode().Perm()&0o044 != 0 && !f.allowReadable:
		return app.Finding(hint.Wrap(fmt.Errorf("standard output is a file with mode %04o, which others may read", info.Mode().Perm()),
			"use --to FILE, set umask 077 before, or say --allow-readable-file"))
	}
	return nil
}

// recover finds and decrypts the object. Whatever came of it is on record when this returns.
func (c *command) recover(ctx context.Context, a *app.Context, f *getFlags, key string) (text []byte, err error) {
	progress, done := c.progress()
	defer done()
	sources, closeAll, err := f.open(ctx, progress)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	trail, err := app.OpenTrailBeside(a.Config, "etcd-get")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, trail.Close()) }()
	began := time.Now()
	located, object, err := locate(ctx, sources, key)
	if err == nil {
		text, err = decrypted(ctx, a, f.form, located, object)
	}
	record := audit.Record{
		Time: began, Operation: "etcd.get", Code: codeOf(err).String(), Duration: time.Since(began), Object: key,
		Reason: f.reason + " (by " + app.UserName() + ")", Peer: app.Ourselves(),
	}
	if located != nil {
		record.KeyID = located.KeyID
	}
	if recordErr := trail.Record(record); recordErr != nil {
		clear(text)
		return nil, errors.Join(fmt.Errorf("nothing is shown: %w", recordErr), err)
	}
	return text, err
}

// errSeveral: which of the objects the API server has is not known.
var errSeveral = errors.New("more than one of these etcds has it, and only one of them is where the API server keeps it")

// locate finds the object in the one source that has it.
func locate(ctx context.Context, sources []evidence.Source, key string) (found *evidence.Recovered, object *stored.Object, err error) {
	var missing error
	for _, source := range sources {
		one, encrypted, err := evidence.Locate(ctx, source, key)
		switch {
		case errors.Is(err, evidence.ErrNotFound):
			missing = err
		case found != nil && (err == nil || isRefusal(err)):
			return nil, nil, app.Finding(hint.Wrap(fmt.Errorf("%s: %w", evidence.Printable(key), errSeveral), "name the one that --etcd-servers-overrides has for this resource with --endpoints, and nothing else"))
		case err != nil:
			return one, encrypted, refusal(err)
		default:
			found, object = one, encrypted
		}
	}
	if found == nil {
		return nil, nil, refusal(missing)
	}
	return found, object, nil
}

// refusal tells the answers of a command that could run from those of one that could not.
func refusal(err error) error {
	switch {
	case errors.Is(err, evidence.ErrNotFound):
		return app.Finding(hint.Wrap(err, "give the key as it is in etcd: /registry/RESOURCE/NAMESPACE/NAME, of a custom resource /registry/GROUP/RESOURCE/NAMESPACE/NAME"))
	case isRefusal(err):
		return app.Finding(err)
	}
	return err
}

// isRefusal reports whether an error is about an object that was found.
func isRefusal(err error) bool {
	return errors.Is(err, evidence.ErrOtherProvider) || errors.Is(err, stored.ErrUndecodable) || errors.Is(err, manifest.ErrUnknown)
}

// decrypted asks the HSM and gives the object the form that was asked for.
func decrypted(ctx context.Context, a *app.Context, form string, located *evidence.Recovered, object *stored.Object) ([]byte, error) {
	if object != nil {
		in, err := a.Connect(ctx)
		if err != nil {
			return nil, err
		}
		defer in.Stop()
		err = evidence.Recover(ctx, retire.Remembering(in.Ring, a.Config.Audit.Path), located, object)
		if errors.Is(err, envelope.ErrUnavailable) || envelope.IsPIN(err) {
			return nil, err // the HSM could not be asked: nothing was found out
		}
		if err != nil {
			return nil, app.Finding(err)
		}
	}
	if form == "raw" {
		return located.Plain, nil
	}
	defer clear(located.Plain)
	text, err := manifest.YAML(located.Plain)
	if err == nil && form == "json" {
		text, err = yaml.YAMLToJSON(text)
	}
	if err != nil {
		return nil, hint.Wrap(refusal(err), "-o raw writes its bytes")
	}
	return text, nil
}

// codeOf is what the audit trail says of the outcome.
func codeOf(err error) codes.Code {
	switch {
	case errors.Is(err, evidence.ErrNotFound):
		return codes.NotFound
	case isRefusal(err), errors.Is(err, errSeveral):
		return codes.FailedPrecondition
	}
	return problem.Of(err).Code
}

// writeNew writes a file that did not exist, for its owner alone.
func writeNew(path string, text []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // the operator names it
	if err != nil {
		return hint.Wrap(fmt.Errorf("writing the object: %w", err), "--to names a file that must not exist yet")
	}
	_, err = file.Write(text)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		// A part of the object must not pass for the whole, nor be in the way of the next attempt.
		return fmt.Errorf("writing the object: %w", ownedfile.Explain(path, errors.Join(err, os.Remove(path))))
	}
	return nil
}
