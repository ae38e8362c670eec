// Command tools finds the kube-apiserver and etcd that the tests and the demo run, or builds them, and prints their
// folder as its last line on stdout; progress goes to stderr. With the name of a release (1.31) it is the kube-apiserver of
// that one. With -releases it prints the names of all. The work is in package kubebin.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/hsm-kms/hsm-kms/test/tools/kubebin"
)

// notCached is the exit code of -cached when the release is not built.
const notCached = 3

func main() {
	releases := flag.Bool("releases", false, "print the releases that can be built, oldest first")
	cached := flag.Bool("cached", false, "build nothing: exit code 3 when the release is not built yet")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	text, err := find(ctx, *releases, *cached, flag.Arg(0))
	stop()
	switch {
	case errors.Is(err, kubebin.ErrNotCached):
		os.Exit(notCached)
	case err != nil:
		fmt.Fprintln(os.Stderr, "tools:", err)
		os.Exit(1)
	}
	fmt.Println(text)
}

func find(ctx context.Context, list, cached bool, release string) (string, error) {
	if list {
		releases, err := kubebin.Releases(ctx)
		return strings.Join(releases, "\n"), err
	}
	if release != "" {
		set, err := kubebin.Release(ctx, os.Stderr, release, cached)
		return set.Dir, err
	}
	set, err := kubebin.Find(ctx, os.Stderr)
	if err == nil {
		fmt.Fprintln(os.Stderr, "kube-apiserver and etcd:", set.Source)
	}
	return set.Dir, err
}
