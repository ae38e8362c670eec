package health

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// readRingOf is a ring that is only read, with one key.
func readRingOf(t *testing.T) *fakeRing {
	t.Helper()
	return &fakeRing{view: envelope.View{Versions: []envelope.Version{version(t, time.Now().Add(-time.Hour), envelope.Retained)}}}
}

// reading runs a reader until the test ends.
func reading(t *testing.T, cfg ReaderConfig) *Reader {
	t.Helper()
	r := NewReader(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); r.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return r
}

// A ring is read and proven in each interval; an outage is two log lines, is seen within the interval, or at once where the
// ring itself says it, and is looked after more often.
func TestReaderOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, log := readRingOf(t), &logBuffer{}
		r := NewReader(ReaderConfig{Name: "old", Ring: ring, RefreshInterval: 30 * time.Second, Logger: log.logger()})
		if is := r.Report(); is.Ring != "old" || is.Problem == nil {
			t.Errorf("before the first look: %+v", is)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go r.Run(ctx)
		synctest.Wait()
		if is := r.Report(); is.Problem != nil || is.Keys != 1 || is.Proven != 1 {
			t.Errorf("after the first look: %+v", is)
		}
		time.Sleep(5 * time.Minute)
		if n := ring.count(); n < 10 || n > 21 {
			t.Errorf("%d looks in 5 minutes, want one every 30 s, the first ones sooner", n)
		}
		ring.set(func(r *fakeRing) { r.view.Versions[0].Works = false })
		if is := r.Report(); !errors.Is(is.Problem, envelope.ErrUnavailable) || is.Proven != 0 {
			t.Errorf("with the token away: %+v", is)
		}
		ring.fail(envelope.ErrUnavailable)
		before := ring.count()
		time.Sleep(61 * time.Second) // the next look, and then after 1, 2, 4 and 8 s
		if n := ring.count() - before; n < 5 {
			t.Errorf("%d looks in the first minute of an outage", n)
		}
		time.Sleep(10 * time.Minute)
		ring.set(func(r *fakeRing) { r.view.Versions[0].Works = true })
		ring.heal()
		time.Sleep(31 * time.Second)
		if is := r.Report(); is.Problem != nil {
			t.Errorf("after the outage: %+v", is)
		}
		var away, ok int
		for _, line := range log.lines() {
			if strings.Contains(line, "cannot be used") {
				away++
				if !strings.Contains(line, "readRing=old") || !strings.Contains(line, "do not restart kube-apiserver") {
					t.Errorf("it says neither which ring nor what not to do: %s", line)
				}
			}
			if strings.Contains(line, "can be used") {
				ok++
			}
		}
		if away != 1 || ok != 2 {
			t.Errorf("%d lines of the outage and %d of its absence: %q", away, ok, log.lines())
		}
		cancel()
		synctest.Wait()
	})
}

// A ring without keys is a problem, unless it is retiring and could be read.
func TestReaderOfAnEmptyRing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		retiring bool
		err      error
		ok       bool
	}{
		"new":           {false, envelope.ErrRingEmpty, false},
		"retired":       {true, envelope.ErrRingEmpty, true},
		"retiring":      {true, errors.Join(envelope.ErrRingEmpty, envelope.ErrUnavailable), false},
		"never read":    {true, envelope.ErrUnavailable, false},
		"wrong PIN":     {true, envelope.ErrPINRefused, false},
		"another error": {true, errors.New("x"), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ring := &fakeRing{}
				ring.fail(c.err)
				r := reading(t, ReaderConfig{Name: "old", Ring: ring, Retiring: c.retiring})
				synctest.Wait()
				if is := r.Report(); (is.Problem == nil) != c.ok || is.Retiring != c.retiring {
					t.Errorf("%+v", is)
				}
			})
		})
	}
}

// A key of which one token holds no copy that works is a problem as long as no other token works with it.
func TestReaderOfAKeyThatWorksNowhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring := readRingOf(t)
		lost := version(t, time.Now(), envelope.Retained)
		lost.Works = false
		refused := version(t, time.Now(), envelope.Refused)
		refused.Works = false
		ring.view.Versions = append(ring.view.Versions, lost, refused)
		r := reading(t, ReaderConfig{Name: "old", Ring: ring})
		synctest.Wait()
		if is := r.Report(); is.Problem == nil || is.Keys != 2 || is.Proven != 1 {
			t.Errorf("%+v", is)
		}
	})
}
