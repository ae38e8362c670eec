package main

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin/audit"
)

func (c *command) audit() *cobra.Command {
	cmd := group(&cobra.Command{Use: "audit", Short: "Check the audit trail"})
	var anchor string
	verify := c.withOutput(&cobra.Command{
		Use:   "verify FILE...",
		Short: "Check that an audit trail is whole: nothing changed, removed, added or reordered",
		Long: `Checks the chain of hashes over one trail: its file, and the files that it was rotated into, in any order. docs/audit.md
describes what this shows and what it cannot. Exits 1 when the trail is not intact.`,
		Example: `  hsm-kms audit verify /var/log/hsm-kms/audit.log*
  hsm-kms audit verify --last-hash 4f1c... /var/log/hsm-kms/audit.log`,
		Args: needs("FILE", "give the file of audit.path, and those that it was rotated into", cobra.MinimumNArgs(1)),
		RunE: func(_ *cobra.Command, files []string) error { return c.auditVerify(anchor, files) },
	})
	verify.Flags().StringVar(&anchor, "last-hash", "", "a hash that was kept elsewhere, and must be in the trail: shows whether the end was cut off")
	cmd.AddCommand(verify)
	return cmd
}

func (c *command) auditVerify(anchor string, files []string) error {
	result, err := audit.Verify(anchor, files...)
	if err != nil {
		return err
	}
	if c.structured() {
		if err := c.json(result); err != nil {
			return err
		}
	} else if err := c.table([][]string{
		{"records", strconv.Itoa(result.Records)}, {"ok", yesNo(result.OK)}, {"end", endWords(result)}, {"last hash", result.LastHash},
	}); err != nil {
		return err
	}
	if result.OK {
		return nil
	}
	where := "the trail as a whole"
	if result.FirstBad != nil {
		where = fmt.Sprintf("%s line %d", result.File, *result.FirstBad)
	}
	return app.Finding(hint.Wrap(errors.New("the audit trail is not intact: "+where+": "+result.Reason), "docs/audit.md says what each finding means"))
}

// endWords says what the end means for what the check can show.
func endWords(r audit.Result) string {
	switch r.End {
	case audit.EndRotated:
		return r.End + ": the chain continues in a file that was not given"
	case audit.EndLive:
		return r.End + ": a process is writing, so the end cannot be checked"
	}
	return r.End
}
