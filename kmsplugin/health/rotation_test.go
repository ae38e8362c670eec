package health

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// An activation is told at its instant, not a probe interval later.
func TestActivationAtItsInstant(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, old := ringOf(t)
		logs := &logBuffer{}
		h := start(t, Config{Ring: ring, Logger: logs.logger()})
		at(time.Second)
		next := version(t, time.Now().Add(10*time.Minute+7*time.Second), envelope.Pending)
		next.Ready = false
		ring.set(func(r *fakeRing) {
			r.view.Versions = append(r.view.Versions, next)
			r.onExercise = func(r *fakeRing) { r.view.Versions[1].Ready = true }
		})
		at(10*time.Minute + 6*time.Second)
		mustReport(t, h, old, nil)
		at(time.Second + 2*clockMargin)
		mustReport(t, h, next.ID, nil)

		all := strings.Join(logs.lines(), "")
		for _, want := range []string{"key is ready for its activation", "key is current\" keyID=" + next.ID.String()} {
			if strings.Count(all, want) != 1 {
				t.Errorf("not exactly one line says %q:\n%s", want, all)
			}
		}
	})
}

// A pending key that is not ready is looked at often when its time is near, and said to be deferred when it is past.
func TestDeferred(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, old := ringOf(t)
		logs := &logBuffer{}
		h := start(t, Config{Ring: ring, Logger: logs.logger()})
		at(time.Second)
		next := version(t, time.Now().Add(10*time.Minute), envelope.Pending)
		next.Ready = false
		ring.set(func(r *fakeRing) { r.view.Versions = append(r.view.Versions, next) })
		at(5 * time.Minute)
		if n := ring.count(); n > 12 {
			t.Errorf("%d probes in five minutes far from the activation", n)
		}
		before := ring.count()
		at(5*time.Minute - time.Second)
		if n := ring.count() - before; n < 12 {
			t.Errorf("%d probes in the five minutes before the activation: none was sooner", n)
		}
		ring.set(func(r *fakeRing) { r.view.Deferred = &next })
		at(2 * time.Minute)
		mustReport(t, h, old, nil)
		if all := strings.Join(logs.lines(), ""); strings.Count(all, "deferred") != 1 {
			t.Errorf("not exactly one line says deferred:\n%s", all)
		}
		ring.set(func(r *fakeRing) {
			r.view.Deferred = nil
			r.view.Versions[1].Ready = true
		})
		at(31 * time.Second)
		mustReport(t, h, next.ID, nil)
	})
}

// A key that is found after its time, because it was copied late or made with 0s to go, is tried at once: it is current
// within the round, and nobody is told to copy what is there.
func TestFoundAfterItsTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, _ := ringOf(t)
		logs := &logBuffer{}
		h := start(t, Config{Ring: ring, Logger: logs.logger(), RefreshInterval: 10 * time.Second})
		at(time.Second)
		next := version(t, time.Now().Add(-time.Minute), envelope.Pending)
		next.Ready = false
		ring.set(func(r *fakeRing) {
			r.refresh = func(context.Context) error {
				ring.set(func(r *fakeRing) {
					if r.view.Deferred == nil && r.view.Current.ID != next.ID {
						r.view.Versions = append(r.view.Versions, next)
						r.view.Deferred = &next
					}
				})
				return nil
			}
			r.onExercise = func(r *fakeRing) {
				if r.view.Deferred != nil {
					found := next
					found.State, found.Ready = envelope.Current, true
					r.view.Versions[len(r.view.Versions)-1], r.view.Current, r.view.Deferred = found, &found, nil
				}
			}
		})
		at(9*time.Second + 2*clockMargin)
		mustReport(t, h, next.ID, nil)
		if all := strings.Join(logs.lines(), ""); strings.Contains(all, "deferred") {
			t.Errorf("it was said to be deferred:\n%s", all)
		}
	})
}

// The current key changed while the old one was exercised, and the new one is not proven here: it is probed before it
// is named.
func TestCurrentKeyChangesUnderTheProbe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, _ := ringOf(t)
		next := version(t, time.Now().Add(-time.Minute), envelope.Current)
		next.Works, next.Ready = false, false
		ring.onExercise = func(r *fakeRing) { r.view.Current = &next }
		h := start(t, Config{Ring: ring})
		synctest.Wait()
		mustReport(t, h, next.ID, nil)
		if n := ring.count(); n != 2 {
			t.Errorf("%d probes, want 2", n)
		}
	})
}

// A current key that is missing on a token is logged when that begins, changes and ends, and not in between; Status is ok.
func TestCurrentKeyMissingOnAToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, id := ringOf(t)
		logs := &logBuffer{}
		h := start(t, Config{Ring: ring, Logger: logs.logger()})
		said := func(waits ...envelope.Wait) []string {
			before := len(logs.lines())
			ring.set(func(r *fakeRing) { r.view.Current.Waits = waits })
			at(time.Hour)
			return logs.lines()[before:]
		}
		at(time.Minute)
		first := said(envelope.Wait{Token: "hsm-b", Lacks: true})
		if len(first) != 1 || !strings.Contains(first[0], "level=WARN") || !strings.Contains(first[0], "hsm-b") || !strings.Contains(first[0], id.String()) {
			t.Errorf("%q", first)
		}
		mustReport(t, h, id, nil)
		if lines := said(envelope.Wait{Token: "hsm-b", Lacks: true, Absent: true}, envelope.Wait{Token: "hsm-c"}); len(lines) != 0 {
			t.Errorf("nothing has changed: %q", lines)
		}
		if lines := said(envelope.Wait{Token: "hsm-c", Lacks: true}); len(lines) != 1 || !strings.Contains(lines[0], "hsm-c") {
			t.Errorf("%q", lines)
		}
		if lines := said(); len(lines) != 1 || !strings.Contains(lines[0], "level=INFO") {
			t.Errorf("%q", lines)
		}
	})
}

// The end of the wait for absent tokens wakes the probe at its instant.
func TestTheEndOfTheGrace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, _ := ringOf(t)
		next := version(t, time.Now().Add(-time.Minute), envelope.Pending)
		next.Ready, next.Until = false, time.Now().Add(10*time.Second)
		next.Waits = []envelope.Wait{{Token: "hsm-b", Absent: true}}
		ring.view.Versions = append(ring.view.Versions, next)
		ring.view.Deferred = &next
		h := start(t, Config{Ring: ring, ProbeInterval: 10 * time.Minute})
		at(9 * time.Second)
		if p := h.Pending(); len(p) != 1 || !p[0].Deferred || !p[0].Until.Equal(next.Until) || !strings.Contains(p[0].Why, "hsm-b is out of reach") {
			t.Errorf("%+v", p)
		}
		before := ring.count()
		at(time.Second + clockMargin)
		if n := ring.count(); n != before+1 {
			t.Errorf("%d probes at the end of the grace, want 1", n-before)
		}
	})
}

// A ring that cannot be re-read, while the key works, is said once and is no problem of Status.
func TestRefreshFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, id := ringOf(t)
		logs := &logBuffer{}
		h := start(t, Config{Ring: ring, Logger: logs.logger()})
		synctest.Wait()
		ring.set(func(r *fakeRing) { r.refresh = func(context.Context) error { return envelope.ErrBusy } })
		at(time.Hour)
		mustReport(t, h, id, nil)
		ring.set(func(r *fakeRing) { r.refresh = nil })
		at(time.Minute)
		all := strings.Join(logs.lines(), "")
		if strings.Count(all, "cannot be read") != 1 || strings.Count(all, "can be read again") != 1 {
			t.Errorf("want one line for each change:\n%s", all)
		}
	})
}

func TestChangedIsTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, id := ringOf(t)
		var told []string
		start(t, Config{Ring: ring, Changed: func(words, keyID string) { told = append(told, words+"|"+keyID) }})
		at(time.Minute)
		ring.fail(envelope.ErrUnavailable)
		at(2 * time.Hour)
		want := []string{"ok|" + id.String(), "the HSM is unavailable|" + id.String(), "the HSM is unavailable|"}
		if strings.Join(told, "\n") != strings.Join(want, "\n") {
			t.Errorf("told %q, want %q", told, want)
		}
	})
}

// A re-read that finds another current key is followed by a probe at once, and not at the probe's own time.
func TestRefreshThatFindsAnotherKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, _ := ringOf(t)
		h := start(t, Config{Ring: ring, RefreshInterval: 10 * time.Second, ProbeInterval: 10 * time.Minute})
		at(time.Second)
		next := version(t, time.Now(), envelope.Current)
		ring.set(func(r *fakeRing) { r.view = envelope.View{Versions: []envelope.Version{next}, Current: &next} })
		at(10 * time.Second)
		mustReport(t, h, next.ID, nil)
	})
}
