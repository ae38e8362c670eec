// Command tools finds the kube-apiserver and etcd that the tests and the demo run, or builds them, and prints their
// folder as its last line on stdout; progress goes to stderr. The work is in package kubebin.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/hsm-kms/hsm-kms/test/tools/kubebin"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	set, err := kubebin.Find(ctx, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "tools:", err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, "kube-apiserver and etcd:", set.Source)
	fmt.Println(set.Dir)
}
