package throttle

import (
	"testing"
	"time"
)

func TestThrottle(t *testing.T) {
	t.Parallel()
	th := Throttle{Interval: time.Minute}
	start := time.Now()
	for i, c := range []struct {
		after   time.Duration
		pass    bool
		skipped int
	}{{0, true, 0}, {1, false, 0}, {59 * time.Second, false, 0}, {time.Minute, true, 2}, {61 * time.Second, false, 0}, {3 * time.Minute, true, 1}} {
		if pass, skipped := th.Allow(start.Add(c.after)); pass != c.pass || skipped != c.skipped {
			t.Errorf("%d: %v, %d", i, pass, skipped)
		}
	}
}
