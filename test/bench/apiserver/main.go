// Command apiserver measures hsm-kms where it is used, inside a real kube-apiserver with a real etcd, beside the same
// API server without encryption and with aescbc: `make bench-apiserver`.
//
// There are four stores, each an etcd of its own that holds the same Secrets: in plain, under aescbc, and under 200 and 2,000
// DEKs that the plugin has wrapped, as many as an API server leaves behind by so many starts. They are written as the API
// server would write them (package kubestore), because 200 starts would take half an hour.
//
// A turn is one life of an API server on one store: its start until /readyz is green, the first list of all Secrets,
// then Secrets created and read with 1 and 8 clients. All variants take turns, one API server at a time, and the
// order moves on by one with each round. Each ratio is made within one round, and the median over the rounds is told: so
// other work on the machine meets all of them alike.
//
// The plugin stands before a PKCS#11 module that counts calls and makes each one take so much longer (package faultp11),
// with SoftHSM behind it. A second plugin on the same token has an outage hold, is armed, and then loses its HSM for the whole
// run: that is the HSM being away.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/hsm-kms/hsm-kms/test/bench/measure"
	"github.com/hsm-kms/hsm-kms/test/tools/kubebin"
)

// The files in the results' folder, beside those of `make bench`.
const (
	latestFile   = "apiserver-latest.txt"
	previousFile = "apiserver-previous.txt"
)

// options are the command line's.
type options struct {
	measure.Flags
	rounds  int
	secrets int
	deks    deks
	keys    int
	size    int
	ops     int
	quick   bool
}

// deks are numbers of DEKs.
type deks []int

func (d *deks) String() string { return strings.Trim(fmt.Sprint([]int(*d)), "[]") }

func (d *deks) Set(text string) error {
	*d = nil
	for number := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(number)
		if err != nil {
			return fmt.Errorf("%q is no number", number)
		}
		*d = append(*d, n)
	}
	return nil
}

// outside reports whether one of them is not between 1 and most.
func (d deks) outside(most int) bool {
	return slices.ContainsFunc(d, func(n int) bool { return n < 1 || n > most })
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench-apiserver:", err)
		os.Exit(1)
	}
}

func run() error {
	o := &options{}
	o.Register()
	flag.IntVar(&o.rounds, "rounds", 6, "how many rounds of turns; benchstat wants six at least")
	flag.IntVar(&o.secrets, "secrets", 5000, "how many Secrets there are")
	o.deks = deks{200, 2000}
	flag.Var(&o.deks, "deks", "under how many DEKs: one store for each of these `numbers`; the limit is that of 200")
	flag.IntVar(&o.keys, "keys", 1, "how many keys there are in the ring; the DEKs are under the newest")
	flag.IntVar(&o.size, "size", 1000, "bytes of data in each Secret")
	flag.IntVar(&o.ops, "ops", 300, "how many Secrets one client creates and reads in a turn; 8 clients do three times as many")
	flag.BoolVar(&o.quick, "quick", false, "one round, and nothing of API servers up to 1.36: a look, not a measurement")
	flag.Parse()
	switch {
	case flag.NArg() > 0:
		return fmt.Errorf("unexpected argument %q: there are only flags (-h lists them)", flag.Arg(0))
	case o.rounds < 1 || o.secrets < 1 || o.keys < 1 || o.deks.outside(o.secrets) || o.size < 1 || o.size > 500_000 || o.ops < 1:
		return errors.New("-rounds, -secrets, -deks, -keys, -size and -ops must be positive, no number of -deks above -secrets, -size at most 500000")
	}
	if o.quick {
		o.rounds = 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return measureAll(ctx, o)
}

// measureAll measures everything, prints the table and saves the results.
func measureAll(ctx context.Context, o *options) (err error) {
	if err := o.Prepare(); err != nil {
		return err
	}
	programs, err := kubebin.Find(ctx, os.Stderr)
	if err != nil {
		return err
	}
	t := &table{options: *o, measured: map[string][]turn{}}
	if t.machine, err = measure.Describe(ctx, []string{o.Bin, "version"}, []string{programs.Path("kube-apiserver"), "--version"}, []string{programs.Path("etcd"), "--version"}); err != nil {
		return err
	}
	w, err := newRig(o, programs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if err := w.start(ctx); err != nil {
		return err
	}
	if err := w.rounds(ctx, t); err != nil {
		return err
	}
	t.judge()
	if err := t.write(os.Stdout, ""); err != nil {
		return err
	}
	path, err := measure.Save(o.Out, latestFile, previousFile, t.save)
	if err != nil {
		return err
	}
	fmt.Printf("\nresults: %s\ncompare: go tool -modfile=test/tools/benchstat/go.mod benchstat %s %s\n", path, filepath.Join(o.Out, previousFile), path)
	return nil
}

func tell(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
