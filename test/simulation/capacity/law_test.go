package capacity

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/internal/capacity"
)

// agree fails unless the law and the simulation differ by no more than the share of the simulation's value.
func agree(t *testing.T, what string, law, simulated, share float64) {
	t.Helper()
	if off := math.Abs(law-simulated) / simulated; !(off <= share) {
		t.Errorf("%s: the law says %.4g, the simulation %.4g: %.1f percent apart, more than %.0f", what, law, simulated, 100*off, 100*share)
	}
}

var (
	// The numbers of hsms are examples and nobody's data sheet.
	single   = capacity.HSM{Servers: 1, Service: 100 * time.Microsecond, Network: time.Millisecond}
	software = capacity.HSM{Servers: 1, Service: 30 * time.Microsecond}
	nearby   = capacity.HSM{Servers: 8, Service: 400 * time.Microsecond, Network: 600 * time.Microsecond}
	far      = capacity.HSM{Servers: 8, Service: 400 * time.Microsecond, Network: 20 * time.Millisecond}
)

// One caller waits for the round trip, many for the HSM.
func TestRate(t *testing.T) {
	t.Parallel()
	for name, hsm := range map[string]capacity.HSM{"software": software, "nearby": nearby, "far": far} {
		for _, callers := range []int{1, 4, 8, 32, 128, 1000} {
			t.Run(fmt.Sprintf("%s, %d", name, callers), func(t *testing.T) {
				t.Parallel()
				s := newSim(hsm, 1)
				s.varies = 0.5
				for range callers {
					s.forever()
				}
				length := min(3, 20_000/hsm.Rate(callers))
				s.from = length / 10
				s.run(length)
				agree(t, "calls a second", hsm.Rate(callers), float64(s.calls)/(length-s.from), 0.1)
			})
		}
	}
}

// As many sessions as Little's law wants are enough, and one less is not.
func TestSessions(t *testing.T) {
	t.Parallel()
	ample := capacity.HSM{Servers: 10_000, Service: time.Millisecond, Network: 4 * time.Millisecond}
	for _, tc := range []struct {
		rate float64
		want int
	}{{100, 1}, {101, 2}, {800, 8}, {3200, 32}} {
		got := capacity.Sessions(tc.rate, 2, ample.Call())
		if got != tc.want {
			t.Errorf("for %v operations a second: %d sessions, want %d", tc.rate, got, tc.want)
		}
		for sessions, enough := range map[int]bool{got: true, got - 1: false} {
			s := newSim(ample, 1)
			s.wayVaries = 0
			for range sessions {
				s.forever()
			}
			s.run(10)
			// The last calls are still under way.
			if rate := float64(s.calls+sessions) / 2 / 10; (rate >= tc.rate) != enough {
				t.Errorf("with %d sessions: %v operations a second, and %v were wanted", sessions, rate, tc.rate)
			}
		}
	}
}

// Calls that come by themselves and take as long as chance has it: what the formula is of.
func TestWaitOfIndependentCalls(t *testing.T) {
	t.Parallel()
	for _, load := range []float64{0.5, 0.7, 0.9} {
		for _, hsm := range []capacity.HSM{single, nearby} {
			t.Run(fmt.Sprintf("%d servers at %.0f percent", hsm.Servers, 100*load), func(t *testing.T) {
				t.Parallel()
				rate := load * hsm.Limit()
				s := newSim(hsm, 7)
				s.memoryless = true
				var next func()
				next = func() {
					s.call(func() {})
					s.after(s.random.ExpFloat64()/rate, next)
				}
				next()
				length := 60_000 / rate
				s.from = length / 10
				s.run(length)
				agree(t, "mean wait in seconds", hsm.Wait(rate).Seconds(), mean(s.waits), 0.1)
			})
		}
	}
	if got := nearby.Wait(nearby.Limit()); got != math.MaxInt64 {
		t.Errorf("at its limit the queue of an HSM ends after %s", got)
	}
}

// A fleet whose plugins are not in step waits no longer than that, up to four fifths of what the HSM can do.
func TestWaitOfAFleet(t *testing.T) {
	t.Parallel()
	for _, load := range []float64{0.3, 0.5, 0.7, 0.8} {
		for _, hsm := range []capacity.HSM{single, nearby, far} {
			t.Run(fmt.Sprintf("%d servers, %s away, at %.0f percent", hsm.Servers, hsm.Network, 100*load), func(t *testing.T) {
				t.Parallel()
				const calls, pause = 12, 2.0
				s := newSim(hsm, 7)
				for range int(load * hsm.Limit() * pause / calls) {
					s.after(pause*s.random.Float64(), func() { s.probing(calls, pause, false) })
				}
				s.from = pause
				s.run(3 * pause)
				law, simulated := hsm.Wait(float64(s.calls)/(2*pause)).Seconds(), mean(s.waits)
				nothing := hsm.Service.Seconds() / 50
				if simulated > law+nothing || simulated < law/10-nothing {
					t.Errorf("mean wait: the law says at most %.3g s, the simulation %.3g s", law, simulated)
				}
			})
		}
	}
}

// An API server with an empty cache: so many DEKs, two calls each, over so many sessions.
func TestColdStart(t *testing.T) {
	t.Parallel()
	for _, hsm := range []capacity.HSM{software, nearby, far} {
		for _, sessions := range []int{1, 8, 32} {
			const deks = 2000
			s := newSim(hsm, 3)
			s.varies = 0.5
			left := deks
			var open func()
			open = func() {
				if left > 0 {
					left--
					s.sequence(2, open)
				}
			}
			for range sessions {
				open()
			}
			s.run(math.Inf(1))
			agree(t, fmt.Sprintf("%d sessions, seconds", sessions), hsm.Together(sessions, 2*deks/float64(sessions)).Seconds(), s.now, 0.1)
		}
	}
}

// What is measured of an HSM gives it back, as far as rates and times go.
func TestFit(t *testing.T) {
	t.Parallel()
	for _, hsm := range []capacity.HSM{software, single, nearby, partition} {
		fit := capacity.Fit(hsm.Call(), hsm.Limit())
		agree(t, "calls a second at most", fit.Limit(), hsm.Limit(), 0.01)
		for _, callers := range []int{1, 8, 1000} {
			agree(t, fmt.Sprintf("calls a second of %d callers", callers), fit.Rate(callers), hsm.Rate(callers), 0.05)
		}
	}
}
