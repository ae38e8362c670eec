// Command demo shows what hsm-kms does, from an empty machine to a Secret that only an HSM can open: `make demo`. It
// uses bin/hsm-kms as a user would, a SoftHSM token, and a real etcd and kube-apiserver, all in a folder of its own that
// it removes again. Each step proves what it says; one that does not hold ends the demo with exit code 1.
//
// Only the story and its words may live here; the machinery is in test/kube, test/softhsm and test/plugin.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	bin := flag.String("bin", "bin/hsm-kms", "the program to show")
	flag.Parse()
	// SIGPIPE too: `make demo | head` must clean up like any other end. The signals stay caught until the end, so that
	// an impatient second Ctrl-C does not leave the folder behind.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	os.Exit(exitCode(ctx, run(ctx, *bin)))
}

// exitCode tells the end: 0, 1 for a failure, 130 after a signal, as shells have it.
func exitCode(ctx context.Context, err error) int {
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "\nInterrupted; everything was stopped and removed.")
		return 130
	default:
		fmt.Fprintln(os.Stderr, "\nThe demo failed:", err)
		return 1
	}
}

// run plays the demo and cleans up whatever became of it.
func run(ctx context.Context, bin string) (err error) {
	dir, err := os.MkdirTemp("", "hsm-kms-demo-")
	if err != nil {
		return fmt.Errorf("making the demo's folder: %w", err)
	}
	d := &demo{bin: bin, dir: dir}
	defer func() {
		if err == nil {
			d.step("Cleaning up: plugin, API server and etcd end, the folder goes")
		}
		err = errors.Join(err, d.stop(), os.RemoveAll(dir))
		if err == nil {
			d.summary()
		}
	}()
	for _, step := range []func(context.Context) error{
		d.findTools, d.makeToken, d.makeKey, d.startPlugin, d.startKubernetes,
		d.writeObjects, d.readEtcd, d.killPlugin, d.restartAPIServer,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}
