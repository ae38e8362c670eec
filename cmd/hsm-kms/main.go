// Command hsm-kms is a Kubernetes KMS v2 plugin whose master key never leaves a PKCS#11 HSM. This package has the command
// line: flags, questions and output. What a command does is in the packages below internal, one for each use case; they share
// package app. The etcd commands call evidence and its parts from here. See README.md.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/hsm-kms/hsm-kms/hsm/worker"
	"github.com/hsm-kms/hsm-kms/internal/harden"
)

// Stamped at build time with -ldflags -X.
var (
	version = "dev"
	commit  = "unknown"
)

// stamp fills in what Go itself knows of a build that was not stamped: `go install MODULE@VERSION`.
func stamp() {
	info, ok := debug.ReadBuildInfo()
	if !ok || version != "dev" || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return
	}
	version = info.Main.Version
}

// main is the only place that ends the process.
func main() {
	if worker.Asked(os.Args) {
		fmt.Fprintln(os.Stderr, "hsm-kms:", worker.Main())
		os.Exit(exitUsage)
	}
	stamp()
	if err := harden.Process(); err != nil {
		fmt.Fprintln(os.Stderr, "hsm-kms: warning:", err)
	}
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}
