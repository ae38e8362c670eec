// Command hsm-kms is a Kubernetes KMS v2 plugin whose master key never leaves a PKCS#11 HSM. What may live in
// this folder is the command line: flags, wiring of the packages, and output. See README.md.
package main

import (
	"context"
	"fmt"
	"os"
)

// Stamped at build time with -ldflags -X.
var (
	version = "dev"
	commit  = "unknown"
)

// main is the only place that ends the process.
func main() {
	if err := harden(); err != nil {
		fmt.Fprintln(os.Stderr, "hsm-kms: warning:", err)
	}
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}
