package health

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/problem"
)

func mustReport(t *testing.T, h *Health, key envelope.KeyID, problem error) {
	t.Helper()
	got := h.Report()
	if got.Key != key {
		t.Errorf("key = %v, want %v", got.Key, key)
	}
	if problem == nil && got.Problem != nil || problem != nil && !errors.Is(got.Problem, problem) {
		t.Errorf("problem = %v, want %v", got.Problem, problem)
	}
}

// at lets time pass and everything that is due happen.
func at(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestBeforeTheFirstProbe(t *testing.T) {
	t.Parallel()
	ring, id := ringOf(t)
	h := New(Config{Ring: ring})
	mustReport(t, h, envelope.KeyID{}, problem.ErrUnchecked)

	h = New(Config{Ring: ring, Proven: Proven{Key: id, At: time.Now().Add(-time.Minute)}})
	mustReport(t, h, id, problem.ErrUnchecked)

	h = New(Config{Ring: ring, Proven: Proven{Key: id, At: time.Now().Add(-2 * time.Hour)}})
	mustReport(t, h, envelope.KeyID{}, problem.ErrUnchecked)
}

func TestOutageTimeline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, id := ringOf(t)
		logs := &logBuffer{}
		h := start(t, Config{Ring: ring, Logger: logs.logger()})
		synctest.Wait()
		<-h.First()
		mustReport(t, h, id, nil)

		at(29 * time.Second)
		down := fmt.Errorf("token hsm-a: %w", envelope.ErrUnavailable)
		ring.fail(down)
		mustReport(t, h, id, nil)
		at(2 * time.Second)
		mustReport(t, h, id, envelope.ErrUnavailable)

		// Shorter than the continuation: it heals within a back-off, without a restart.
		at(59 * time.Minute)
		mustReport(t, h, id, envelope.ErrUnavailable)
		ring.heal()
		at(30 * time.Second)
		mustReport(t, h, id, nil)

		// Longer: the key_id goes after an hour, counted from the last good probe.
		ring.fail(down)
		at(59 * time.Minute)
		mustReport(t, h, id, envelope.ErrUnavailable)
		at(2 * time.Minute)
		mustReport(t, h, envelope.KeyID{}, envelope.ErrUnavailable)
		ring.heal()
		at(31 * time.Second)
		mustReport(t, h, id, nil)

		if n := len(logs.lines()); n > 8 {
			t.Errorf("two outages of an hour made %d log lines:\n%s", n, strings.Join(logs.lines(), ""))
		}
	})
}

func TestStopsAtOnce(t *testing.T) {
	t.Parallel()
	for _, cause := range []error{envelope.ErrKeyMissing, envelope.ErrSelfTest, envelope.ErrAmbiguous, envelope.ErrRingEmpty} {
		t.Run(cause.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ring, id := ringOf(t)
				h := start(t, Config{Ring: ring})
				synctest.Wait()
				mustReport(t, h, id, nil)
				ring.fail(errors.Join(fmt.Errorf("token b: %w", envelope.ErrUnavailable), fmt.Errorf("token a: %w", cause)))
				at(31 * time.Second)
				mustReport(t, h, envelope.KeyID{}, cause)
				ring.heal()
				at(2 * time.Second)
				mustReport(t, h, id, nil)
			})
		})
	}
}

func TestPINRefusedKeepsTheKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, id := ringOf(t)
		h := start(t, Config{Ring: ring})
		synctest.Wait()
		ring.fail(errors.Join(envelope.ErrUnavailable, envelope.ErrPINRefused))
		at(31 * time.Second)
		mustReport(t, h, id, envelope.ErrPINRefused)
	})
}

func TestAmbiguousWithAProvenKeyGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, id := ringOf(t)
		ring.view.Problem = fmt.Errorf("%w: two", envelope.ErrAmbiguous)
		h := start(t, Config{Ring: ring, WriteContinuation: time.Minute})
		at(10 * time.Minute)
		mustReport(t, h, id, envelope.ErrAmbiguous)
	})
}

func TestStaleProbe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, id := ringOf(t)
		logs := &logBuffer{}
		h := start(t, Config{Ring: ring, Logger: logs.logger()})
		synctest.Wait()
		hang := make(chan struct{})
		ring.set(func(r *fakeRing) {
			// A ring that breaks its promise: it does not return by the deadline.
			r.exercise = func(context.Context) error { <-hang; return nil }
		})
		at(90 * time.Second)
		mustReport(t, h, id, nil)
		at(time.Second)
		mustReport(t, h, id, problem.ErrStale)
		at(time.Hour)
		mustReport(t, h, envelope.KeyID{}, problem.ErrStale)
		if all := strings.Join(logs.lines(), ""); !strings.Contains(all, "too old") {
			t.Errorf("no log line says that the check is too old:\n%s", all)
		}
		ring.heal()
		close(hang)
		at(time.Second)
		mustReport(t, h, id, nil)
	})
}

func TestProbeIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, id := ringOf(t)
		h := start(t, Config{Ring: ring, CallLimit: 4 * time.Second})
		synctest.Wait()
		ring.set(func(r *fakeRing) {
			r.exercise = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		})
		at(33 * time.Second)
		mustReport(t, h, id, nil)
		at(2 * time.Second)
		mustReport(t, h, id, context.DeadlineExceeded)
	})
}

// A key that the token does not know any more is looked for once; if the ring lacks it, it is missing.
func TestUnknownKeyIsReReadFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, _ := ringOf(t)
		h := start(t, Config{Ring: ring, RefreshInterval: time.Hour})
		synctest.Wait()
		ring.fail(envelope.ErrUnknownKey)
		next := version(t, time.Now().Add(-time.Minute), envelope.Current)
		ring.set(func(r *fakeRing) {
			r.refresh = func(context.Context) error {
				ring.set(func(r *fakeRing) {
					r.view = envelope.View{Versions: []envelope.Version{next}, Current: &next}
					r.exercise = nil
				})
				return nil
			}
		})
		at(30 * time.Second) // the probe's own instant: no error is said in between
		mustReport(t, h, next.ID, nil)

		ring.set(func(r *fakeRing) { r.refresh = nil })
		ring.fail(envelope.ErrUnknownKey)
		at(31 * time.Second)
		mustReport(t, h, envelope.KeyID{}, envelope.ErrKeyMissing)
	})
}

func TestRestartDuringAnOutage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ring, id := ringOf(t)
		h := start(t, Config{Ring: ring, StateDir: dir})
		at(time.Second)
		mustReport(t, h, id, nil)

		proven, err := LoadProven(dir, "ring")
		if err != nil || proven.Key != id {
			t.Fatalf("LoadProven = %v, %v", proven, err)
		}
		dead := &fakeRing{exercise: func(context.Context) error { return envelope.ErrUnavailable }}
		dead.view.Problem = envelope.ErrUnavailable
		again := start(t, Config{Ring: dead, StateDir: dir, Proven: proven})
		at(time.Second)
		mustReport(t, again, id, envelope.ErrUnavailable)
		at(58 * time.Minute)
		mustReport(t, again, id, envelope.ErrUnavailable)
		at(3 * time.Minute)
		mustReport(t, again, envelope.KeyID{}, envelope.ErrUnavailable)
	})
}

// A file from the future (the clock was set back) must not keep a key_id forever.
func TestProvenInTheFuture(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, id := ringOf(t)
		dead := &fakeRing{exercise: func(context.Context) error { return envelope.ErrUnavailable }}
		h := start(t, Config{Ring: dead, Proven: Proven{Key: id, At: time.Now().Add(1000 * time.Hour)}})
		at(time.Minute)
		mustReport(t, h, id, envelope.ErrUnavailable)
		at(time.Hour)
		mustReport(t, h, envelope.KeyID{}, envelope.ErrUnavailable)
	})
}

// The back-off: 1, 2, 4, 8, 16, 30, 30 seconds, and the usual interval when it is over.
func TestBackOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, _ := ringOf(t)
		ring.fail(envelope.ErrUnavailable)
		start(t, Config{Ring: ring})
		at(95 * time.Second)
		var gaps []time.Duration
		ring.set(func(r *fakeRing) {
			for i := 1; i < len(r.exercises); i++ {
				gaps = append(gaps, r.exercises[i].Sub(r.exercises[i-1]))
			}
		})
		if got, want := fmt.Sprint(gaps), "[1s 2s 4s 8s 16s 30s 30s]"; got != want {
			t.Errorf("gaps = %s, want %s", got, want)
		}
		ring.heal()
		before := ring.count()
		at(10 * time.Minute)
		if n := ring.count() - before; n < 19 || n > 21 {
			t.Errorf("%d probes in ten minutes, want one each 30 s", n)
		}
	})
}

// Status asks the ring for nothing, however often it is asked.
func TestReportCostsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, id := ringOf(t)
		h := start(t, Config{Ring: ring})
		synctest.Wait()
		before := ring.count()
		for range 10000 {
			mustReport(t, h, id, nil)
		}
		if ring.count() != before {
			t.Error("Report caused a probe")
		}
	})
}
