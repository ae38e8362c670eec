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
	"time"

	"github.com/hsm-kms/hsm-kms/hsm/worker"
	"github.com/hsm-kms/hsm-kms/test/bench/measure"
)

// options are the command line's.
type options struct {
	measure.Flags
	slice  time.Duration
	rounds int
	ops    int
	deks   int
	// initialize is how long a slow library takes to start.
	initialize time.Duration
	strict     bool
	parts      string

	// Of the other roles, which this program starts itself in.
	role, who, socket, module, label, pinFile, profile string
	keys                                               int
}

func main() {
	if worker.Asked(os.Args) { // that of W
		_ = worker.Main()
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	o := options{}
	o.Register()
	flag.DurationVar(&o.slice, "time", 200*time.Millisecond, "how long one turn takes")
	flag.IntVar(&o.rounds, "rounds", 9, "how many rounds of turns; those with a slow token are a third of it")
	flag.IntVar(&o.ops, "ops", 1_000_000, "how many operations the memory is measured over")
	flag.IntVar(&o.deks, "deks", 2000, "how many DEKs a cold start opens")
	flag.DurationVar(&o.initialize, "initialize", 10*time.Second, "how long C_Initialize takes in the slow replacement of a worker; the limit is meant for 60s too")
	flag.StringVar(&o.parts, "parts", "fast,starts,slow,held,growth,faults,operate", "which `parts` to measure: ratios to N and R; starts; a slow token and counts; what the processes hold; growth with keys, tokens, sessions and connections; faults under load; requests of operate")
	flag.BoolVar(&o.strict, "strict", false, "exit 1 when a limit is missed")
	flag.StringVar(&o.role, "role", "", "internal: what this process is")
	flag.StringVar(&o.who, "who", "", "internal")
	flag.StringVar(&o.socket, "socket", "", "internal")
	flag.StringVar(&o.module, "module", "", "internal")
	flag.StringVar(&o.label, "label", "", "internal")
	flag.StringVar(&o.pinFile, "pin-file", "", "internal")
	flag.StringVar(&o.profile, "profile", "", "internal")
	flag.IntVar(&o.keys, "keys", 0, "internal")
	flag.Parse()
	switch {
	case o.role == "empty":
		return serveEmpty(o.socket)
	case o.role == "bare":
		return runBare(&o)
	case o.role == "beside":
		return serveBeside(&o)
	case o.role == "keys":
		return runKeys(&o)
	case o.slice <= 0 || o.rounds < 1 || o.ops < 100 || o.deks < 1 || o.initialize <= 0:
		return errors.New("-time, -rounds, -deks and -initialize must be positive, and -ops at least 100")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return measureAll(ctx, &o)
}

// measureAll measures everything, prints the table and saves the results.
func measureAll(ctx context.Context, o *options) (err error) {
	if err := o.Prepare(); err != nil {
		return err
	}
	w, err := newRig(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	t := &table{measured: rounds{}}
	if t.machine, err = measure.Describe(ctx, []string{o.Bin, "version"}); err != nil {
		return err
	}
	if err := w.startEmpty(ctx); err != nil {
		return err
	}
	parts := map[string]func(context.Context, *table) error{"fast": w.fast, "starts": w.starts, "slow": w.slow, "held": w.held, "growth": w.growth, "faults": w.faults, "operate": operate}
	for name := range strings.SplitSeq(o.parts, ",") {
		part := parts[name]
		if part == nil {
			return fmt.Errorf("-parts: there is no part %q (-h lists them)", name)
		}
		if err := part(ctx, t); err != nil {
			return err
		}
	}
	if err := t.write(os.Stdout, ""); err != nil {
		return err
	}
	path, err := save(t, o.Out)
	if err != nil {
		return err
	}
	fmt.Printf("\nresults: %s\n", path)
	if n := t.Missed(); n > 0 {
		fmt.Printf("%s missed\n", counted(n, "limit"))
		if o.strict {
			return errors.New("a limit was missed")
		}
	}
	return nil
}

func tell(text string) { fmt.Fprintln(os.Stderr, text) }
