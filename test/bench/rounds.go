package main

import (
	"context"
	"fmt"
	"time"

	"github.com/hsm-kms/hsm-kms/test/bench/measure"
)

// Those that take turns.
const (
	whoN      = "N" // the empty server
	whoR      = "R" // the bare calls in a loop
	whoB      = "B" // the empty server with the bare calls in its handlers
	whoW      = "W" // B with the module in a worker process
	whoU      = "U" // a plugin built the usual way, with crypto11
	whoPlugin = "plugin"
)

// point is one thing measured, in every round once.
type point struct {
	Who     string // whoN, whoR, one of beside, whoPlugin
	Profile string // "" for N
	Op      string
	Clients int
	Delay   time.Duration // added to each PKCS#11 call
}

// rounds are all samples, by point, in the order of the rounds.
type rounds map[point][]sample

// plan says what a round consists of.
type plan struct {
	subjects []*subject
	clients  []int
	slice    time.Duration // of each point in each round
	rounds   int
	delay    time.Duration
}

// run measures the plan. All take turns for each operation and number of clients, so that what is
// compared was measured within a second.
func (p plan) run(ctx context.Context, n *client, into rounds, tell func(string)) error {
	for i := range p.rounds {
		tell(fmt.Sprintf("round %d of %d, %s per PKCS#11 call more", i+1, p.rounds, p.delay))
		for _, op := range []string{opEncrypt, opDecrypt, opStatus} {
			for _, clients := range p.clients {
				if op == opStatus && p.delay > 0 && clients > 1 {
					continue // Status never waits for the HSM: one look is enough, and the rounds stay short
				}
				if err := p.turn(ctx, n, into, op, load{Clients: clients, Time: p.slice}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (p plan) turn(ctx context.Context, n *client, into rounds, op string, l load) error {
	s, err := n.measure(ctx, op, l)
	if err != nil {
		return fmt.Errorf("the empty server: %w", err)
	}
	into.add(point{whoN, "", op, l.Clients, p.delay}, s)
	for _, subject := range p.subjects {
		if op != opStatus {
			if s, err = subject.bare.measure(pairOf(subject.profile, op), l); err != nil {
				return err
			}
			into.add(point{whoR, subject.profile, op, l.Clients, p.delay}, s)
			for _, who := range beside {
				if subject.beside[who] == nil {
					continue
				}
				if s, err = subject.beside[who].measure(ctx, op, l); err != nil {
					return fmt.Errorf("the server %s: %w", who, err)
				}
				into.add(point{who, subject.profile, op, l.Clients, p.delay}, s)
			}
		}
		if s, err = subject.client.measure(ctx, op, l); err != nil {
			return fmt.Errorf("the plugin (%s): %w", subject.profile, err)
		}
		into.add(point{whoPlugin, subject.profile, op, l.Clients, p.delay}, s)
	}
	return nil
}

func (r rounds) add(p point, s sample) { r[p] = append(r[p], s) }

// pairOf is the pair of bare calls that a profile makes for an operation.
func pairOf(profile, op string) string {
	switch {
	case profile == profileHMAC:
		return pairHMAC
	case op == opDecrypt:
		return pairDecrypt
	}
	return pairEncrypt
}

// median is the median over the rounds of what f says of each.
func (r rounds) median(p point, f func(sample) float64) float64 {
	var values []float64
	for _, s := range r[p] {
		values = append(values, f(s))
	}
	return measure.Median(values)
}

// perRound computes, for each round, what f says of N, R and the plugin in it, all with the same number of clients. Without
// R (Status) its sample is zero.
func (r rounds) perRound(p point, f func(n, bare, plugin sample) float64) []float64 {
	n, bare := p, p
	n.Who, n.Profile = whoN, ""
	bare.Who = whoR
	var values []float64
	for i, s := range r[p] {
		if i >= len(r[n]) {
			break // without its N there is no ratio
		}
		var b sample
		if i < len(r[bare]) {
			b = r[bare][i]
		}
		values = append(values, f(r[n][i], b, s))
	}
	return values
}

// latencyRatio is the plugin's p50 over N + R.
func latencyRatio(n, bare, plugin sample) float64 {
	return float64(plugin.P50) / float64(n.P50+bare.P50)
}

// rateRatio is the plugin's rate over 1 / (1/N + 1/R), the rate of one who does both one after the other.
func rateRatio(n, bare, plugin sample) float64 {
	seconds := 1 / n.Rate()
	if bare.Ops > 0 {
		seconds += 1 / bare.Rate()
	}
	return plugin.Rate() * seconds
}
