// Command demo shows what hsm-kms does, from an empty machine to a Secret that only an HSM can open: `make demo`. It
// uses bin/hsm-kms as a user would, a SoftHSM token, and a real etcd and kube-apiserver, all in a folder of its own that
// it removes again. Each step proves what it says; one that does not hold ends the demo with exit code 1.
//
// It has the steps and their texts. test/kube, test/softhsm and test/plugin start what the steps use.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/hsm-kms/hsm-kms/test/plugin"
)

func main() {
	bin := flag.String("bin", "bin/hsm-kms", "the program to show")
	flag.Parse()
	// SIGPIPE too: `make demo | head` must clean up like any other end. The signals stay caught until the end, so that
	// an impatient second Ctrl-C does not leave the folder behind.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	code := demonstrate(ctx, *bin)
	stop()
	os.Exit(code)
}

// demonstrate plays the demo, cleans up whatever became of it, and gives the exit code: 0, 1 for a failure, 130 after a
// signal, as shells have it.
func demonstrate(ctx context.Context, bin string) int {
	dir, err := os.MkdirTemp("", "hsm-kms-demo-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "making the demo's folder:", err)
		return 1
	}
	d := &demo{bin: bin, dir: dir}
	err = d.play(ctx)
	awaitSignal(ctx, err)
	interrupted := ctx.Err() != nil
	switch {
	case interrupted:
		fmt.Fprintln(os.Stderr, "\nInterrupted; stopping everything.")
	case err != nil:
		fmt.Fprintln(os.Stderr, "\nThe demo failed:", err)
	default:
		d.step("Cleaning up: plugin, API server and etcd end, the folder goes")
	}
	left := errors.Join(d.stop(), os.RemoveAll(dir))
	if left != nil {
		fmt.Fprintln(os.Stderr, "\nCleaning up failed:", left)
	}
	switch {
	case interrupted:
		return 130
	case err != nil || left != nil:
		return 1
	}
	d.summary()
	return 0
}

// awaitSignal waits a moment for the signal of which a command has died: a terminal sends it to the whole group, and the
// command's end may be known here before the signal is.
func awaitSignal(ctx context.Context, err error) {
	ours, isOurs := errors.AsType[*plugin.ExitError](err)
	other, isOther := errors.AsType[*exec.ExitError](err)
	if !(isOurs && ours.Code == -1 || isOther && other.ExitCode() == -1) {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(time.Second):
	}
}

// play goes through the steps and stops at the first that fails.
func (d *demo) play(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		d.findTools, d.makeToken, d.makeKey, d.startPlugin, d.startKubernetes,
		d.writeObjects, d.readEtcd, d.killPlugin, d.restartAPIServer, d.rotate, d.migrate, d.report,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}
