package main

import (
	"crypto/fips140"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

// versionJSON is what a build says of itself. Fields and names are a contract.
type versionJSON struct {
	Version    string `json:"version"`
	Commit     string `json:"commit"`
	Go         string `json:"go"`
	KMS        string `json:"kms"`
	FIPSModule string `json:"fipsModule"` // of Go: v1.0.0, or latest where it is that of the Go release
	FIPSMode   string `json:"fipsMode"`   // off, on or only
}

func aboutVersion() versionJSON {
	about := versionJSON{version, commit, runtime.Version(), "v2", fips140.Version(), "off"}
	switch {
	case fips140.Enforced():
		about.FIPSMode = "only"
	case fips140.Enabled():
		about.FIPSMode = "on"
	}
	return about
}

func (c *command) version() *cobra.Command {
	return c.withOutput(&cobra.Command{
		Use:     "version",
		Short:   "Print version, commit, Go, its FIPS 140-3 module and the KMS version that is spoken",
		Example: "  hsm-kms version -o json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			about := aboutVersion()
			if c.structured() {
				return c.json(about)
			}
			fips := ""
			if about.FIPSMode != "off" {
				fips = fmt.Sprintf(", FIPS 140-3 module %s, mode %s", about.FIPSModule, about.FIPSMode)
			}
			_, err := fmt.Fprintf(c.out, "hsm-kms %s (commit %s, %s, KMS %s%s)\n", about.Version, about.Commit, about.Go, about.KMS, fips)
			return err
		},
	})
}
