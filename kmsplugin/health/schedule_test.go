package health

import (
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// Plugins that start, or recover, at one moment do not meet at the HSM from then on; each keeps to its interval.
func TestFleetFallsOutOfStep(t *testing.T) {
	t.Parallel()
	const every, fleet = 30 * time.Second, 1000
	for name, unwell := range map[string]bool{"after a start": false, "after an outage": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			var probes, refreshes [10]int // by the tenth of the interval in which they come
			for range fleet {
				s := schedule{probeEvery: every, refreshEvery: every, random: New(Config{}).schedule.random, settled: unwell}
				if unwell {
					s.plan(began, envelope.View{}, true)
				}
				now := began.Add(s.backOff)
				s.plan(now, envelope.View{}, false)
				for _, c := range []struct {
					at    time.Time
					count *[10]int
				}{{s.probeAt, &probes}, {s.refreshAt, &refreshes}} {
					d := c.at.Sub(now)
					if d <= every/2-time.Nanosecond || d > every {
						t.Fatalf("the first pause is %s", d)
					}
					c.count[int((d-1)*10/every)]++
				}
				first := s.probeAt
				s.plan(first, envelope.View{}, false)
				if got := s.probeAt.Sub(first); got != every {
					t.Fatalf("the second pause is %s", got)
				}
			}
			for tenth := 5; tenth < 10; tenth++ {
				if probes[tenth] > 2*fleet/5 || refreshes[tenth] > 2*fleet/5 || probes[tenth] == 0 || refreshes[tenth] == 0 {
					t.Fatalf("by tenths of the interval: %v probes, %v refreshes", probes, refreshes)
				}
			}
		})
	}
}
