// Command bench fills a real etcd with Secrets as kube-apiserver would store them, without one, and measures what etcd
// report, etcd verify and etcd migrate take over them, live and from a snapshot: `make bench-evidence`.
//
// The wrapped DEKs come from the plugin itself, over as many keys as asked for; the objects are encrypted under them by
// the API server's own transformers (package kubestore). What is measured runs as a process of its own, so that its
// time is a user's and its memory is the kernel's figure (the largest resident set). Machines differ, so each time is
// told as a ratio to a bare measure taken beside it: reading the same range from etcd in pages of the same size,
// etcdutl's own look at the same file, decrypting the same values on all CPUs. The range is also read in several parts at once:
// whether etcd gives more that way depends on the machine. etcd migrate is measured with an API server. -curve measures etcd
// report and etcd verify while one store grows, and nothing else.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/hsm-kms/hsm-kms/test/bench/measure"
	"github.com/hsm-kms/hsm-kms/test/tools/kubebin"
)

// options are the command line's.
type options struct {
	measure.Flags
	dir     string
	objects int
	curve   []int // objects of each step, increasing; none: objects, and everything is measured
	keys    int
	deks    int
	size    int
	rounds  int
	migrate int
	ranges  int
	role    string
	etcd    string
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench-evidence:", err)
		os.Exit(1)
	}
}

func run() error {
	o := &options{}
	o.Register()
	flag.StringVar(&o.dir, "dir", "", "a `folder` with room for five times the store (default: a temporary one)")
	flag.IntVar(&o.objects, "objects", 1_000_000, "how many Secrets")
	flag.Func("curve", "numbers of Secrets, such as `100000,1000000`: measure etcd report and verify over each, in one store that grows", o.setCurve)
	flag.IntVar(&o.keys, "keys", 5, "over how many keys of the ring")
	flag.IntVar(&o.deks, "deks", 2000, "and how many DEKs in all")
	flag.IntVar(&o.size, "size", 1000, "bytes of data in each Secret")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each live reading is measured; the median is told")
	flag.IntVar(&o.migrate, "migrate", 20_000, "how many Secrets etcd migrate has rewritten, with an API server of their own; 0: not measured")
	flag.StringVar(&o.role, "role", "", "internal: what this process is")
	flag.StringVar(&o.etcd, "etcd", "", "internal")
	flag.IntVar(&o.ranges, "ranges", 1, "internal")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch {
	case o.role == roleRead:
		return bareRead(ctx, o.etcd, o.objects, o.ranges)
	case o.objects < 1 || o.keys < 1 || o.deks < o.keys || o.size < 0 || o.rounds < 1 || o.migrate < 0:
		return errors.New("-objects, -keys and -rounds must be positive, and -deks at least -keys")
	}
	return measureAll(ctx, o)
}

func (o *options) setCurve(text string) error {
	for field := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(field)
		if err != nil {
			return err
		}
		o.curve = append(o.curve, n)
	}
	if !slices.IsSorted(o.curve) || o.curve[0] < 1 {
		return errors.New("the numbers must be positive and increase")
	}
	o.objects = o.curve[len(o.curve)-1]
	return nil
}

func measureAll(ctx context.Context, o *options) (err error) {
	if err := o.Prepare(); err != nil {
		return err
	}
	programs, err := kubebin.Find(ctx, os.Stderr)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.dir, "kmsev") // short: a socket's path has at most 107 bytes
	if err != nil {
		return fmt.Errorf("making a folder: %w", err)
	}
	w := &rig{options: o, programs: programs, dir: dir}
	defer func() { err = errors.Join(err, w.close()) }()
	steps := []func(context.Context) error{w.start, w.makeDEKs, w.fillAll, w.live, w.snapshot, w.migration}
	if len(o.curve) > 0 {
		steps = []func(context.Context) error{w.start, w.makeDEKs, w.curve}
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if err := w.table(os.Stdout, ""); err != nil {
		return err
	}
	files := [...]string{latestFile, previousFile}
	if len(o.curve) > 0 {
		files = [...]string{"curve-" + latestFile, "curve-" + previousFile}
	}
	path, err := measure.Save(o.Out, files[0], files[1], w.save)
	if err != nil {
		return err
	}
	fmt.Printf("\nresults: %s\n", path)
	return nil
}

// The files in the results' folder, beside those of `make bench`.
const (
	latestFile   = "evidence-latest.txt"
	previousFile = "evidence-previous.txt"
)

func tell(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
