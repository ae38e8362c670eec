package health

import (
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// clockMargin is waited beyond an activation, so that the timer, which follows the monotonic clock, does not wake a
// moment before the wall clock has got there.
const clockMargin = time.Millisecond

// schedule says when to read the ring and when to probe. The zero times are due at once.
type schedule struct {
	probeEvery, refreshEvery time.Duration
	random                   func(n time.Duration) time.Duration // from 0 to n, n itself excluded

	probeAt, refreshAt time.Time
	backOff            time.Duration // zero: all is well
	settled            bool          // the pauses are the configured ones
}

func (s *schedule) probeDue(now time.Time) bool   { return !now.Before(s.probeAt) }
func (s *schedule) refreshDue(now time.Time) bool { return !now.Before(s.refreshAt) }

// plan sets the next times. While something is wrong, or a key that is due or nearly so is not ready, both come after a
// back-off of 1 s, 2 s, 4 s and so on up to the usual interval. An activation, and the end of the wait for absent tokens, wake
// the probe at their instant, so that all nodes change over together and not a probe interval apart.
//
// The first pauses after a start, and after something was wrong, are shortened at random, to a half at least: a fleet that
// was started at one moment, after a power cut, would else meet at the HSM in every interval.
func (s *schedule) plan(now time.Time, view envelope.View, unwell bool) {
	if unwell || s.urgent(now, view) {
		s.backOff = min(max(firstBackOff, 2*s.backOff), s.probeEvery)
		s.probeAt = now.Add(s.backOff)
		s.refreshAt = s.probeAt
		s.settled = false
	} else {
		s.backOff = 0
		if s.probeDue(now) || s.probeAt.After(now.Add(s.probeEvery)) {
			s.probeAt = now.Add(s.pause(s.probeEvery))
		}
		if s.refreshDue(now) || s.refreshAt.After(now.Add(s.refreshEvery)) {
			s.refreshAt = now.Add(s.pause(s.refreshEvery))
		}
		s.settled = true
	}
	for i := range view.Versions {
		v := &view.Versions[i]
		for _, at := range []time.Time{v.Activation.Add(clockMargin), v.HeldUntil().Add(clockMargin)} {
			if v.State == envelope.Pending && at.After(now) && at.Before(s.probeAt) {
				s.probeAt = at
			}
		}
	}
}

// within brings the next times forward to at most d from now.
func (s *schedule) within(now time.Time, d time.Duration) {
	for _, at := range []*time.Time{&s.probeAt, &s.refreshAt} {
		if latest := now.Add(d); at.After(latest) {
			*at = latest
		}
	}
}

// pause is the interval, or some of it.
func (s *schedule) pause(interval time.Duration) time.Duration {
	if s.settled {
		return interval
	}
	return interval - s.random(interval/2)
}

// urgent reports whether a key is held back, or will be within two refresh intervals if nothing happens.
func (s *schedule) urgent(now time.Time, view envelope.View) bool {
	if view.Deferred != nil {
		return true
	}
	for i := range view.Versions {
		v := &view.Versions[i]
		if v.State == envelope.Pending && !v.Ready && v.Activation.Sub(now) < 2*s.refreshEvery {
			return true
		}
	}
	return false
}

// wait is how long to sleep until something is due.
func (s *schedule) wait(now time.Time) time.Duration {
	next := s.probeAt
	if s.refreshAt.Before(next) {
		next = s.refreshAt
	}
	return max(next.Sub(now), 0)
}
