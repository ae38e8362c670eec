// Command plain is a worker and nothing else: what testworker.Plain builds without the race detector.
package main

import (
	"fmt"
	"os"

	"github.com/hsm-kms/hsm-kms/hsm/worker"
)

func main() {
	fmt.Fprintln(os.Stderr, worker.Main())
	os.Exit(2)
}
