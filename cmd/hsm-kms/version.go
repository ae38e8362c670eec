package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

func (c *command) version() *cobra.Command {
	return c.withOutput(&cobra.Command{
		Use:     "version",
		Short:   "Print version, commit, Go and the KMS version that is spoken",
		Example: "  hsm-kms version -o json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			about := struct {
				Version string `json:"version"`
				Commit  string `json:"commit"`
				Go      string `json:"go"`
				KMS     string `json:"kms"`
			}{version, commit, runtime.Version(), "v2"}
			if c.output == "json" {
				return c.json(about)
			}
			_, err := fmt.Fprintf(c.out, "hsm-kms %s (commit %s, %s, KMS %s)\n", about.Version, about.Commit, about.Go, about.KMS)
			return err
		},
	})
}
