package main

import (
	"context"
	"fmt"

	"github.com/hsm-kms/hsm-kms/test/bench/measure"
)

// steady keeps probes and refreshes out of what is counted.
const steady = "probeInterval: 10m\nrefreshInterval: 1h\n"

// fast measures both profiles on SoftHSM itself, in the configuration that every user gets, and the start.
func (w *rig) fast(ctx context.Context, t *table) error {
	var subjects []*subject
	for _, profile := range []string{profileGCM, profileHMAC} {
		s, err := w.start(ctx, setup{name: profile, profile: profile})
		if err != nil {
			return err
		}
		subjects = append(subjects, s)
	}
	// The first turns warm up connections, pools and caches, and are thrown away.
	warm := plan{subjects: subjects, clients: []int{8}, slice: w.options.slice, rounds: 1}
	if err := warm.run(ctx, w.n, rounds{}, func(string) {}); err != nil {
		return err
	}
	p := plan{subjects: subjects, clients: []int{1, 8, 32}, slice: w.options.slice, rounds: w.options.rounds}
	before, known := measure.CPUNow(w.pids()...)
	if err := p.run(ctx, w.n, t.measured, tell); err != nil {
		return err
	}
	if after, _ := measure.CPUNow(w.pids()...); known {
		t.Figure("processors used by others during these rounds (above 10 the ratios tell of the machine, too)", measure.Others(before, after), "percent", nil)
	}
	for _, s := range subjects {
		for _, op := range []string{opEncrypt, opDecrypt} {
			t.judge(s.profile, op)
		}
	}
	tell("starting again and again")
	for _, s := range subjects {
		if err := startUp(ctx, s, t); err != nil {
			return err
		}
	}
	return nil
}

// judge tells the ratios of the plugin, which are judged, and of those beside it.
func (t *table) judge(profile, op string) {
	for _, who := range append([]string{whoPlugin}, beside...) {
		bound := func(l *measure.Limit) *measure.Limit {
			if who != whoPlugin {
				return nil
			}
			return l
		}
		at := func(clients int, f func(n, bare, plugin sample) float64) float64 {
			return measure.Median(t.measured.perRound(point{who, profile, op, clients, 0}, f))
		}
		if len(t.measured[point{who, profile, op, 1, 0}]) == 0 {
			continue
		}
		what := fmt.Sprintf("%s, %s, %s, ", who, profile, op)
		t.Figure(what+"p50 with 1 client", at(1, latencyRatio), "x (N + R)", bound(measure.AtMost(1.35)))
		t.Figure(what+"rate with 8 clients", at(8, rateRatio), "of 1/(1/N + 1/R)", bound(measure.AtLeast(0.92)))
		t.Figure(what+"rate with 32 clients", at(32, rateRatio), "of 1/(1/N + 1/R)", bound(measure.AtLeast(0.88)))
	}
}

// held measures what the process holds, on a plugin as it comes: the faulty module does nothing here but count sessions.
func (w *rig) held(ctx context.Context, t *table) error {
	s, err := w.start(ctx, setup{name: "held", profile: profileGCM, faulty: true})
	if err != nil {
		return err
	}
	tell(fmt.Sprintf("memory over %d operations", w.options.ops))
	return memory(ctx, s, w.options.ops, t)
}
