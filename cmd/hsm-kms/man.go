//go:build man

package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// packaging are the commands of the program that make release builds for itself. They are in no program that is given away.
func (c *command) packaging() []*cobra.Command {
	return []*cobra.Command{{
		Use:   "man DIR",
		Short: "Write a man page for each command",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
			if err != nil {
				return fmt.Errorf("reading SOURCE_DATE_EPOCH: %w", err)
			}
			date := time.Unix(seconds, 0).UTC()
			root := cmd.Root()
			root.DisableAutoGenTag = true
			root.RemoveCommand(cmd)
			return doc.GenManTree(root, &doc.GenManHeader{Section: "1", Date: &date, Source: "hsm-kms " + version, Manual: "hsm-kms"}, args[0])
		},
	}}
}
