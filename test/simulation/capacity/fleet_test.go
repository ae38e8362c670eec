package capacity

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/internal/capacity"
)

// The calculation of docs/performance.md: 10,000 clusters of three nodes on one partition that does 20,000 calls a second
// at a round trip of 2 ms. The partition is an example, and nobody's data sheet.
var partition = capacity.HSM{Servers: 16, Service: 800 * time.Microsecond, Network: 1200 * time.Microsecond}

const (
	clusters    = 10_000
	callTimeout = 2 * time.Second
)

var plane = capacity.Plane{Nodes: 3, Restarts: 0.1, Rotations: 1.0 / 30, DEKs: 20}

// asked is what a plugin asks in the default configuration, for a ring of two keys.
func asked() capacity.Plugin {
	return capacity.Plugin{
		Seal: 2, Open: 2, Refresh: capacity.ForRefresh(2), Start: startCalls(2) + capacity.ForRefresh(2),
		ProbeInterval: 30 * time.Second, RefreshInterval: 30 * time.Second, MaxSessions: 8,
	}
}

// startCalls are those of a connection to a token in the first of two slots: TestCallsOfThePlugin counts them.
func startCalls(keys int) float64 { return 37 + 6*float64(keys) }

func within(t *testing.T, what string, got, least, most float64) {
	t.Helper()
	if got < least || got > most {
		t.Errorf("%s: %.4g, want %.4g to %.4g", what, got, least, most)
	}
}

// What the document says of 10,000 clusters.
func TestTenThousandClusters(t *testing.T) {
	t.Parallel()
	p := asked()
	if got, want := part().Limit(), partition.Limit()/scale; math.Abs(got-want) > 1e-6 {
		t.Errorf("the part does %v calls a second, want %v", got, want)
	}
	within(t, "idle calls a second", clusters*plane.Idle(p), 11_999, 12_001)
	within(t, "the share of what the partition does", clusters*plane.Idle(p)/partition.Limit(), 0.599, 0.601)
	within(t, "calls of a day beyond the idle ones, as a share", 1-plane.Idle(p)*86400/plane.Day(p), 0.0002, 0.0005)
	least, most := plane.Sessions(p)
	within(t, "sessions at least", float64(clusters*least), 60_000, 60_000)
	within(t, "sessions at most", float64(clusters*most), 270_000, 270_000)
	within(t, "a call when all start at once, seconds", partition.Together(3*clusters, 1).Seconds(), 1.499, 1.501)
	within(t, "until all have connected, seconds", partition.Together(3*clusters, p.Start).Seconds(), 85, 86)
	within(t, "until all have opened their DEKs, seconds", plane.ColdStartTime(p, partition, 3*clusters, 1).Seconds(), 154, 155)
	within(t, "years that a key lasts", plane.Lasts(p)/365, 1300, 1400)

	slow := p
	slow.ProbeInterval, slow.RefreshInterval = 5*time.Minute, 5*time.Minute
	within(t, "idle calls a second with intervals of 5 minutes", clusters*plane.Idle(slow), 1199, 1201)
}

// A fortieth of the clusters and of the partition: the same ratios, and a fortieth of the time to simulate them.
const scale = 40

func part() capacity.HSM {
	h := partition
	h.Servers, h.Service = 1, 2*time.Millisecond
	return h
}

// idle lets a fleet probe for some intervals; inStep: all began at one moment. It gives what the HSM saw in the last of them.
func idle(t *testing.T, inStep, settles bool, intervals int) *sim {
	t.Helper()
	p := asked()
	round := int(p.Probe() + p.Refresh)
	pause := p.ProbeInterval.Seconds()
	s := newSim(part(), 11)
	for range plane.Nodes * clusters / scale {
		begin := 0.0
		if !inStep {
			begin = pause * s.random.Float64()
		}
		s.after(begin, func() { s.probing(round, pause, settles) })
	}
	s.from = float64(intervals-1) * pause
	s.run(float64(intervals) * pause)
	return s
}

// In normal running the partition is busy by the share that the law says, and nobody waits.
func TestIdleFleet(t *testing.T) {
	t.Parallel()
	s := idle(t, false, false, 3)
	p := asked()
	agree(t, "calls a second", clusters/scale*plane.Idle(p), float64(s.calls)/p.ProbeInterval.Seconds(), 0.02)
	within(t, "mean wait, ms", 1e3*mean(s.waits), 0, 1e3*part().Wait(clusters/scale*plane.Idle(p)).Seconds())
	within(t, "p99 of a call, ms", 1e3*quantile(s.took, 0.99), 0, 20)
}

// All started at one moment. With the first pause drawn at random the queue of the first round is gone for good after the
// second; without it the rounds after it would be queues, too.
func TestFleetThatStartedTogether(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		settles     bool
		interval    int
		least, most float64 // p99 of a call in seconds
	}{
		{false, 1, 1.45, 1.55},
		{false, 4, 1, 1.5},
		{true, 2, 0.2, 0.5},
		{true, 4, 0, 0.2},
		{true, 6, 0, 0.1},
	} {
		t.Run(fmt.Sprintf("settles %v, interval %d", tc.settles, tc.interval), func(t *testing.T) {
			t.Parallel()
			s := idle(t, true, tc.settles, tc.interval)
			within(t, "p99 of a call, seconds", quantile(s.took, 0.99), tc.least, tc.most)
		})
	}
}

// A power cut: all plugins connect at once. Nothing is lost as long as one call, behind one of each other plugin, takes less
// than callTimeout.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	p := asked()
	for _, spread := range []time.Duration{0, time.Minute, 2 * time.Minute} {
		s := newSim(part(), 5)
		plugins := plane.Nodes * clusters / scale
		left, last := plugins, 0.0
		for range plugins {
			s.after(spread.Seconds()*s.random.Float64(), func() {
				s.sequence(int(p.Start), func() {
					left--
					last = s.now
				})
			})
		}
		s.run(math.Inf(1))
		if left != 0 {
			t.Fatalf("%d plugins never connected", left)
		}
		law := max(part().Together(plugins, p.Start), spread).Seconds()
		agree(t, "seconds until all have connected, started within "+spread.String(), law, last, 0.05)
		longest := quantile(s.took, 1)
		within(t, "the longest call, seconds", longest, 0, 1.05*part().Together(plugins, 1).Seconds())
		if spread == 2*time.Minute {
			within(t, "the longest call when they start within two minutes, seconds", longest, 0, 0.1)
		}
	}
}
