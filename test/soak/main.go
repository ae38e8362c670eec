// Command soak mixes load and faults for as long as it is told, as `make soak` does: the real program, asked over its
// socket, with a PKCS#11 module that fails at random in front of a real token. It ends with one table and exits 1 when a
// promise was broken, with the seed that gives the same faults again.
//
// The seed gives the same choice of faults in the same order; which call of which client meets one, and how long healing
// takes between storms, is up to the machine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

const (
	settling = 3 * time.Second  // of load without faults, before anything is measured
	patience = 30 * time.Second // bounds the start of the program
	healing  = 10 * time.Second // within which all must be well once the faults are over
)

// errBroken: a promise was broken; what and how has been printed.
var errBroken = errors.New("a promise was broken")

type options struct {
	bin     string
	minutes float64
	seed    uint64
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

func run() error {
	var o options
	flag.StringVar(&o.bin, "bin", "bin/hsm-kms", "the `program` that is soaked")
	flag.Float64Var(&o.minutes, "minutes", 1, "how long faults are injected")
	flag.Uint64Var(&o.seed, "seed", 0, "of an earlier run, for the same faults; 0: a new one")
	flag.Parse()
	if o.minutes <= 0 {
		return fmt.Errorf("-minutes is %g: want more than 0", o.minutes)
	}
	if o.seed == 0 {
		o.seed = rand.Uint64()
	}
	var err error
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return fmt.Errorf("finding the program: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return soak(ctx, o)
}

// soak runs it all: settle, faults, heal, judge. The folder goes unless a promise was broken.
func soak(ctx context.Context, o options) (err error) {
	fmt.Printf("soaking for %g min, seed %d\n", o.minutes, o.seed)
	w, err := newRig(ctx, o.bin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close(errors.Is(err, errBroken))) }()
	l, err := startLoad(ctx, w)
	if err != nil {
		return err
	}
	defer l.end()
	pause(ctx, settling)
	var r report
	if r.Start, err = w.holdsAfterWorst(ctx); err != nil {
		return err
	}
	l.watchStalls()
	length := time.Duration(o.minutes * float64(time.Minute))
	if err := w.inject(ctx, rand.New(rand.NewPCG(o.seed, 0)), length, &r); err != nil {
		return err
	}
	r.Stall = l.longestStall()
	if r.End = r.Start; r.Ill == nil && w.plugin.Process().Running() && ctx.Err() == nil {
		if r.End, err = w.holdsAfterWorst(ctx); err != nil {
			return err
		}
	}
	l.end()
	if ctx.Err() != nil {
		return fmt.Errorf("interrupted (seed %d)", o.seed)
	}
	r.Died = !w.plugin.Process().Running()
	r.Load = &l.tally
	r.counters(w)
	r.StopErr = w.stop()
	r.print(os.Stdout)
	return judge(o, w, &r)
}

// judge prints what was broken, and how to see it again.
func judge(o options, w *rig, r *report) error {
	broken := r.broken()
	if len(broken) == 0 {
		return nil
	}
	for _, what := range broken {
		fmt.Println("BROKEN:", what)
	}
	fmt.Printf("the same faults again: make soak MINUTES=%g SEED=%d\nits log and the faults: %s and faults.log in %s\n", o.minutes, o.seed, w.plugin.Log(), w.dir)
	return errBroken
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
