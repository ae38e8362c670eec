// Command hsm-kms is a Kubernetes KMS v2 plugin whose master key never leaves a PKCS#11 HSM. This package has the command
// line: flags, questions and output. What a command does is in the packages below internal, one for each use case; they share
// package app. See README.md.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/hsm-kms/hsm-kms/hsm/worker"
	"github.com/hsm-kms/hsm-kms/internal/harden"
)

// Stamped at build time with -ldflags -X.
var (
	version = "dev"
	commit  = "unknown"
)

// main is the only place that ends the process.
func main() {
	if worker.Asked(os.Args) {
		fmt.Fprintln(os.Stderr, "hsm-kms:", worker.Main())
		os.Exit(exitUsage)
	}
	if err := harden.Process(); err != nil {
		fmt.Fprintln(os.Stderr, "hsm-kms: warning:", err)
	}
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}
