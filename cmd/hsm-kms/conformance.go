package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/conformance"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

type conformanceFlags struct{ token, ring string }

func (c *command) conformance() *cobra.Command {
	f := &conformanceFlags{}
	cmd := c.withConfig(c.withOutput(&cobra.Command{
		Use:   "conformance",
		Short: "Test whether an HSM does all that hsm-kms requires of it",
		Long: `Use a partition or token that is made for the test. Everything that uses the HSM waits behind these calls.

Makes two keys with a label of their own, seals and opens with them as the plugin would, changes what was sealed in every
byte, and destroys the keys again. No other object of the token is touched, no wrong PIN is tried, and what could not be
removed is named. Ctrl-C ends the test and still removes the keys. Their label is printed to stderr first: a test that is
killed (SIGKILL) leaves them, and no later one touches them.

What it prints can be sent in as it stands: it has no PIN, label, serial number or path. Exits 0 when the token conforms,
1 when it does not or when a key may be left, 2 when the test could not be begun or was interrupted.`,
		Example: `  hsm-kms conformance --config test.yaml > report.txt
  hsm-kms conformance --config test.yaml --ring made-by-vendor-tool   # where hsm-kms cannot make the key`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.runConformance(cmd.Context(), f) },
	}))
	cmd.Flags().StringVar(&f.token, "token", "", "`name` of the token in the configuration (default the first)")
	cmd.Flags().StringVar(&f.ring, "ring", "", "`label` of keys that were made for this test: none is made, none is destroyed")
	return cmd
}

func (c *command) runConformance(ctx context.Context, f *conformanceFlags) error {
	a, err := c.load()
	if err != nil {
		return err
	}
	at, err := tokenNamed(a.Config, f.token)
	if err != nil {
		return err
	}
	report, err := conformance.Run(c.process.Acting(ctx), a, conformance.Options{
		At: at, Ring: f.ring, Program: fmt.Sprintf("hsm-kms %s (commit %s, %s, %s/%s)", version, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH),
		Label: func(label string) {
			fmt.Fprintf(c.errOut, "hsm-kms: the keys of this test have the label %s; a test that is killed leaves them on the token\n", label)
		},
		Progress: func(check conformance.Check) { fmt.Fprintf(c.errOut, "hsm-kms: %s: %s\n", check.Result, check.Name) },
	})
	if err != nil {
		return err
	}
	if c.structured() {
		err = c.json(report)
	} else {
		err = report.Text(printable{c.out})
	}
	switch {
	case err != nil:
		return fmt.Errorf("writing output: %w", err)
	case len(report.Left) > 0:
		return app.Finding(hint.Wrap(errors.New("keys that this test made may still be on the token"), "the report names them; the test made them, and nothing else uses them"))
	case !report.Conforms:
		return app.Finding(hint.Wrap(errors.New("the token does not conform"), "docs/hsm-support.md says what each profile requires; try another profile"))
	}
	return nil
}
