package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/bench"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/capacity"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// benchStarts is how often it connects: each is a login.
const benchStarts = 5

type benchFlags struct {
	plan     bench.Plan
	plane    capacity.Plane
	token    string
	capacity bool
}

func (c *command) bench() *cobra.Command {
	f := &benchFlags{}
	cmd := c.withConfig(c.withOutput(&cobra.Command{
		Use:   "bench",
		Short: "Measure latency and rate of a token, and tell what a control plane asks of it",
		Long: `Connects to one token of the configuration a few times, then seals and opens DEKs that it throws away, with the
ring's current key, as fast as the token answers. From that it works out what a control plane asks of the token.

It writes nothing to the token or to etcd, keeps to maxSessions, and ends at Ctrl-C after the calls that are under way. It does use the HSM:
whatever else uses it meanwhile, a plugin that serves included, waits behind its calls, and the token must have
room for as many sessions again. Every seal spends one of the 2^32 nonces of the key; a run takes one in
4,096 of them at most, and says so before it begins.

-o json is an array, one object for each row; with --capacity it is one object, of rows and capacity.`,
		Example: `  hsm-kms bench
  hsm-kms bench --clients 1,16 --time 2s --token hsm-b
  hsm-kms bench --nodes 5 --restarts 0.1 --deks 400
  hsm-kms bench -o json | jq '.[] | select(.op == "open" and .clients == 1) | .p50'
  hsm-kms bench --capacity -o json | jq .capacity.idleCallsPerSecond`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.runBench(cmd.Context(), f) },
	}))
	flags := cmd.Flags()
	flags.StringVar(&f.token, "token", "", "`name` of the token in the configuration (default the first)")
	flags.IntSliceVar(&f.plan.Clients, "clients", []int{1, 8, 32}, "how many ask at one time; one row each for seal and for open")
	flags.DurationVar(&f.plan.Time, "time", time.Second, "how long a row takes")
	flags.IntVar(&f.plane.Nodes, "nodes", 3, "nodes of the control plane")
	flags.Float64Var(&f.plane.Restarts, "restarts", 1, "restarts of each node, a day")
	flags.Float64Var(&f.plane.Rotations, "rotations", 1, "rotations of the key, a day")
	flags.IntVar(&f.plane.DEKs, "deks", 200, "distinct DEKs in etcd: etcd report counts them")
	flags.BoolVar(&f.capacity, "capacity", false, "with -o json: one object, of rows and capacity")
	return cmd
}

// The bounds of a capacity.Plane: beyond them are slips of the hand, and numbers that an int or JSON cannot hold.
const (
	mostNodes = 1000
	mostDEKs  = 10_000_000
	mostADay  = 86_400
)

// aDay says whether something may happen so often a day; NaN may not.
func aDay(times float64) bool { return times >= 0 && times <= mostADay }

// check looks at the flags before anything is loaded.
func (f *benchFlags) check() error {
	slices.Sort(f.plan.Clients)
	f.plan.Clients = slices.Compact(f.plan.Clients)
	n := len(f.plan.Clients)
	switch {
	case n < 1 || n > bench.MostRows:
		return fmt.Errorf("--clients names %d numbers: 1 to %d are measured", n, bench.MostRows)
	case f.plan.Clients[0] < 1 || f.plan.Clients[n-1] > bench.MostClients:
		return fmt.Errorf("--clients must be from 1 to %d", bench.MostClients)
	case f.plan.Time < 10*time.Millisecond:
		return errors.New("--time must be 10ms at least")
	case f.plan.Time > bench.LongestTime:
		return hint.Wrap(fmt.Errorf("--time %s is longer than %s", f.plan.Time, bench.LongestTime),
			"a longer load tells no more, and spends nonces of a key that is in use; for load over hours make a token and a ring of their own")
	case f.plane.Nodes < 1 || f.plane.Nodes > mostNodes || f.plane.DEKs < 0 || f.plane.DEKs > mostDEKs:
		return fmt.Errorf("--nodes must be from 1 to %s, and --deks from 0 to %s", grouped(mostNodes), grouped(mostDEKs))
	case !aDay(f.plane.Restarts) || !aDay(f.plane.Rotations):
		return fmt.Errorf("--restarts and --rotations must be from 0 to %s a day", grouped(mostADay))
	}
	return nil
}

func (c *command) runBench(ctx context.Context, f *benchFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	a, err := c.load()
	if err != nil {
		return err
	}
	at, err := tokenNamed(a.Config, f.token)
	if err != nil {
		return err
	}
	known, err := a.Known()
	if err != nil {
		return err
	}
	ctx, stop := c.process.UntilSignal(ctx)
	defer stop()
	b := &benched{cfg: a.Config, at: at, known: known}
	defer b.close()
	if err := b.connect(ctx); err != nil {
		return stopped(ctx, err)
	}
	c.announce(b, f)
	rows, refreshCalls, err := b.measure(ctx, f.plan)
	if err != nil {
		return errors.Join(c.printRows(f, rows), stopped(ctx, err))
	}
	return c.printBench(f, rows, b.asks(rows[0], refreshCalls))
}

// stopped says of an error what matters when the user has ended the run; any other is returned as it is.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return hint.Wrap(errors.New("stopped before the last row; nothing was written to the token"), "run it again for the whole table")
}

// tokenNamed is the place of the token in the configuration; "" names the first.
func tokenNamed(cfg *config.Config, name string) (int, error) {
	var names []string
	for i, t := range cfg.Tokens {
		if t.Name == cmp.Or(name, t.Name) {
			return i, nil
		}
		names = append(names, t.Name)
	}
	return 0, hint.Wrap(fmt.Errorf("no token is named %q", name), "--token may be "+strings.Join(names, ", "))
}

// announce says what is about to be done to the HSM.
func (c *command) announce(b *benched, f *benchFlags) {
	t := b.cfg.Tokens[b.at]
	fmt.Fprintf(c.errOut, "hsm-kms: measuring token %s with %s: %d logins, then %d rows of %s, as fast as it answers, on %s and one for login.\n",
		t.Name, b.key, benchStarts, f.plan.Rows(), f.plan.Time, counted(t.MaxSessions, "session"))
	fmt.Fprintln(c.errOut, "hsm-kms: whatever else uses this HSM, a plugin that serves included, waits behind these calls and needs sessions of its own.")
	if b.cfg.Profile == config.ProfileAESGCM {
		fmt.Fprintf(c.errOut, "hsm-kms: nothing is written; at most %s of the %s nonces of that key are spent, on DEKs that are thrown away.\n",
			grouped(bench.SealBudget), grouped(capacity.Nonces))
	}
}

// benched is a token that is measured, connected while it is.
type benched struct {
	cfg   *config.Config
	at    int // in cfg.Tokens
	known envelope.RingConfig
	count bench.Counter
	in    *app.Tokens
	key   envelope.KeyID
	took  []time.Duration // of each start
	calls int64           // of all starts
}

func (b *benched) close() {
	if b.in != nil {
		b.in.Stop()
		b.in = nil
	}
}

// connect is one start, for which it first ends the one before; it refuses a ring without a current key.
func (b *benched) connect(ctx context.Context) error {
	b.close()
	common, tokens, err := app.HSMConfig(b.cfg)
	if err != nil {
		return err
	}
	common.Observer = &b.count
	before, start := b.count.Calls(), time.Now()
	in, err := app.Connect(ctx, common, tokens[b.at:b.at+1], b.known)
	if err != nil {
		return err
	}
	b.in = in
	b.took = append(b.took, time.Since(start))
	b.calls += b.count.Calls() - before
	exerciseErr := in.Ring.Exercise(ctx)
	view := in.Ring.View()
	if view.Current == nil {
		return app.Finding(cmp.Or(view.Problem, exerciseErr))
	}
	b.key = view.Current.ID
	return exerciseErr
}

// measure starts some more times, and runs the plan. refreshCalls is what a reading of the ring costs.
func (b *benched) measure(stop context.Context, plan bench.Plan) (rows []bench.Row, refreshCalls int64, err error) {
	for range benchStarts - 1 {
		if err := stop.Err(); err != nil {
			return nil, 0, err
		}
		if err := b.connect(stop); err != nil {
			return nil, 0, err
		}
	}
	var elapsed time.Duration
	for _, d := range b.took {
		elapsed += d
	}
	rows = []bench.Row{bench.RowOf(bench.OpStart, 1, b.took, elapsed, b.calls)}
	before := b.count.Calls()
	if err := b.in.Ring.Refresh(stop); err != nil {
		return rows, 0, err
	}
	refreshCalls = b.count.Calls() - before
	more, err := plan.Run(stop, b.in.Ring, b.key, &b.count)
	return append(rows, more...), refreshCalls, err
}

// asks is what a plugin with this configuration asks of the token. A seal and an open are two calls each, in both profiles:
// what the rows have beyond that are sessions that were opened.
func (b *benched) asks(start bench.Row, refreshCalls int64) capacity.Plugin {
	return capacity.Plugin{
		Seal: 2, Open: 2, Start: start.HSMCallsPerOp, Refresh: float64(refreshCalls),
		ProbeInterval: b.cfg.ProbeInterval.Std(), RefreshInterval: b.cfg.RefreshInterval.Std(),
		MaxSessions: b.cfg.Tokens[b.at].MaxSessions,
	}
}
