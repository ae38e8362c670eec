package health

import (
	"fmt"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/problem"
)

// Report is what Status says now.
type Report struct {
	Key      envelope.KeyID // zero: Status is an error
	Problem  error          // nil: ok; else a sentinel of envelope or problem with its cause, for our log only
	LastGood time.Time      // the end of the last good probe, in an earlier process perhaps; zero: never
}

// result is what a probe found. It is never changed once published.
type result struct {
	at      time.Time      // when the probe ended; zero: none has
	failure error          // of the probe; nil: good
	warning error          // what is wrong although the current key works
	key     envelope.KeyID // proven last
	good    time.Time      // when
}

// firstResult is what an earlier process left. A time ahead of our clock counts from now on: the clock was set back, and
// the continuation must still end.
func firstResult(proven Proven, now time.Time) *result {
	r := &result{failure: problem.ErrUnchecked, key: proven.Key, good: proven.At}
	if r.good.After(now) {
		r.good = now
	}
	return r
}

// Report tells the state of the last probe, judged at this moment. It asks nobody and does not wait.
func (h *Health) Report() Report {
	return h.judged(h.latest.Load(), time.Now())
}

// judged is the report of a result, with the hold.
func (h *Health) judged(r *result, now time.Time) Report {
	report := r.report(now, h.cfg)
	if h.cfg.Hold != nil {
		report = h.cfg.Hold.Judge(report)
	}
	return report
}

func (r *result) report(now time.Time, cfg Config) Report {
	report := Report{Problem: r.failure, LastGood: r.good}
	if r.failure != nil && problem.Of(r.failure).Stops {
		return report
	}
	if r.failure == nil {
		report.Problem = r.warning
	}
	works := r.failure == nil // a warning does not stop writes, however short the continuation
	if age := now.Sub(r.at); !r.at.IsZero() && age > staleAfter*cfg.ProbeInterval {
		report.Problem = fmt.Errorf("%w: it ended %s ago", problem.ErrStale, age.Round(time.Second))
		works = false
	}
	if works || now.Sub(r.good) <= cfg.WriteContinuation {
		report.Key = r.key
	}
	return report
}
