package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/bench"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/duration"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// benchStarts is how often it connects: each is a login.
const benchStarts = 5

type benchFlags struct {
	plan  bench.Plan
	token string
}

func (c *command) bench() *cobra.Command {
	f := &benchFlags{}
	cmd := c.withConfig(c.withRing(c.withOutput(&cobra.Command{
		Use:   "bench",
		Short: "Measure latency and rate of a token",
		Long: `Connects to one token of the configuration five times. Then it seals and opens DEKs, which it discards, with the ring's
current key, as fast as the token answers. docs/performance.md has what a control plane asks of a token.

It writes nothing to the token or to etcd, keeps to maxSessions, and ends at Ctrl-C after the calls that are under way.
It is load on the HSM: everything else that uses the HSM, including a running plugin, waits behind its calls. The token
must have room for as many sessions again. Each seal spends one of the 2^32 nonces of the key. A run spends at most one
in 4,096 of them, and prints the number before it begins.

With --ring it measures a read ring, with the key that would be current if it were written under.

-o json is an array, one object for each row.`,
		Example: `  hsm-kms bench
  hsm-kms bench --clients 1,16 --time 2s --token hsm-b
  hsm-kms bench -o json | jq '.[] | select(.op == "open" and .clients == 1) | .p50'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.runBench(cmd.Context(), f) },
	})))
	flags := cmd.Flags()
	flags.StringVar(&f.token, "token", "", "`name` of the token in the configuration (default the first)")
	flags.IntSliceVar(&f.plan.Clients, "clients", []int{1, 8, 32}, "how many ask at one time; one row each for seal and for open")
	duration.Var(flags, &f.plan.Time, "time", time.Second, "how long a row takes")
	return cmd
}

// check looks at the flags before anything is loaded.
func (f *benchFlags) check() error {
	slices.Sort(f.plan.Clients)
	f.plan.Clients = slices.Compact(f.plan.Clients)
	n := len(f.plan.Clients)
	switch {
	case n < 1 || n > bench.MostRows:
		return fmt.Errorf("--clients has %d numbers; 1 to %d are possible", n, bench.MostRows)
	case f.plan.Clients[0] < 1 || f.plan.Clients[n-1] > bench.MostClients:
		return fmt.Errorf("--clients must be from 1 to %d", bench.MostClients)
	case f.plan.Time < 10*time.Millisecond:
		return errors.New("--time must be 10ms at least")
	case f.plan.Time > bench.LongestTime:
		return hint.Wrap(fmt.Errorf("--time %s is longer than %s", f.plan.Time, bench.LongestTime),
			"choose a shorter time: a longer load shows no more, and spends nonces of a key that is in use; for load over hours, make a token and a ring for it")
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
	known.ReadOnly = false
	ctx, stop := c.process.UntilSignal(ctx)
	defer stop()
	b := &benched{cfg: a.Config, at: at, known: known}
	defer b.close()
	if err := b.connect(ctx); err != nil {
		return stopped(ctx, err)
	}
	c.announce(b, f)
	rows, err := b.measure(ctx, f.plan)
	return errors.Join(c.printRows(rows), stopped(ctx, err))
}

// stopped says of an error what matters when the user has ended the run; any other is returned as it is.
func stopped(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil {
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
	fmt.Fprintln(c.errOut, "hsm-kms: everything else that uses this HSM, including a running plugin, waits behind these calls and needs sessions of its own.")
	if b.cfg.Profile != config.ProfileHMACKDF {
		fmt.Fprintf(c.errOut, "hsm-kms: nothing is written; at most %s of the %s nonces of that key are spent, on DEKs that are discarded.\n",
			grouped(bench.SealBudget), grouped(bench.Nonces))
	}
	if b.cfg.Profile == config.ProfileAESGCMHSMIV {
		fmt.Fprintln(c.errOut, "hsm-kms: stateDir keeps these nonces instead of older ones, so a repeat of an older one is not detected afterwards.")
	}
}

// benched is a token that is measured, connected while it is. It is here because internal/bench opens no token: it gets a
// Ring that is open.
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
	view := in.Ring.Advance()
	if view.Current == nil {
		return app.Finding(cmp.Or(view.Problem, exerciseErr))
	}
	b.key = view.Current.ID
	return exerciseErr
}

// measure starts some more times, and runs the plan.
func (b *benched) measure(stop context.Context, plan bench.Plan) ([]bench.Row, error) {
	for range benchStarts - 1 {
		if err := stop.Err(); err != nil {
			return nil, err
		}
		if err := b.connect(stop); err != nil {
			return nil, err
		}
	}
	var elapsed time.Duration
	for _, d := range b.took {
		elapsed += d
	}
	rows := []bench.Row{bench.RowOf(bench.OpStart, 1, b.took, elapsed, b.calls)}
	more, err := plan.Run(stop, b.in.Ring, b.key, &b.count)
	return append(rows, more...), err
}

// printRows prints what was measured.
func (c *command) printRows(rows []bench.Row) error {
	if c.structured() {
		return c.json(append([]bench.Row{}, rows...)) // [] and not null
	}
	if len(rows) == 0 {
		return nil
	}
	table := [][]string{{"OP", "CLIENTS", "PER SECOND", "P50", "P99", "HSM CALLS PER OP"}}
	for _, r := range rows {
		table = append(table, []string{
			r.Op, strconv.Itoa(r.Clients), threePlaces(r.OpsPerSecond), threePlaces(r.P50) + " ms", threePlaces(r.P99) + " ms", threePlaces(r.HSMCallsPerOp),
		})
	}
	return c.headed(table)
}

// threePlaces shows a number with as many digits as mean something, and large ones in groups.
func threePlaces(v float64) string {
	switch {
	case v >= 100:
		return grouped(int64(v + 0.5))
	case v >= 10:
		return trimZeros(fmt.Sprintf("%.1f", v))
	case v >= 1:
		return trimZeros(fmt.Sprintf("%.2f", v))
	case v >= 0.001 || v == 0:
		return trimZeros(fmt.Sprintf("%.3f", v))
	}
	return "less than 0.001"
}

// trimZeros takes what says nothing off a decimal fraction.
func trimZeros(s string) string { return strings.TrimSuffix(strings.TrimRight(s, "0"), ".") }
