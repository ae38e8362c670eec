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

// A repeated event is reported ever more seldom, and each is counted; one that begins again after a pause is reported at once.
func TestPausesGrow(t *testing.T) {
	t.Parallel()
	th := Throttle{Interval: time.Minute, Longest: time.Hour}
	now := time.Now()
	var passed []time.Duration
	events, told := 0, 0
	for after := time.Duration(0); after < 4*time.Hour; after += 10 * time.Second {
		events++
		if pass, skipped := th.Allow(now.Add(after)); pass {
			passed = append(passed, after)
			told += 1 + skipped
		}
	}
	want := []time.Duration{0, time.Minute, 5 * time.Minute, 21 * time.Minute, 81 * time.Minute, 141 * time.Minute, 201 * time.Minute}
	if len(passed) != len(want) {
		t.Fatalf("passed at %v, want %v", passed, want)
	}
	for i := range want {
		if passed[i] != want[i] {
			t.Errorf("line %d at %s, want %s", i, passed[i], want[i])
		}
	}
	if left := events - told; left < 0 || left > 60*6 {
		t.Errorf("%d of %d events are not told", left, events)
	}
	now = now.Add(6 * time.Hour)
	if pass, _ := th.Allow(now); !pass {
		t.Error("after a pause without events, the next was not let pass")
	}
	if pass, _ := th.Allow(now.Add(time.Second)); pass {
		t.Error("the interval is gone")
	}
	if pass, skipped := th.Allow(now.Add(61 * time.Second)); !pass || skipped != 1 {
		t.Error("the pause did not begin again")
	}
	th.Restart()
	if pass, _ := th.Allow(now.Add(62 * time.Second)); !pass {
		t.Error("Restart")
	}
}
