package health

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// An HSM that hangs in every call leaves the loop turning; a call that does not keep to its bound stops it, which is told.
func TestTurning(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		call  func(context.Context) error
		stuck bool
	}{
		"an HSM that hangs":   {call: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }},
		"a lock that is held": {call: func(context.Context) error { time.Sleep(24 * time.Hour); return nil }, stuck: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ring, _ := ringOf(t)
				h := start(t, Config{Ring: ring})
				if err := h.Turning(); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Hour)
				ring.set(func(r *fakeRing) { r.exercise, r.refresh = tt.call, tt.call })
				for range 12 {
					time.Sleep(time.Minute)
					if err := h.Turning(); !tt.stuck && err != nil {
						t.Error(err)
					}
				}
				if err := h.Turning(); (err != nil) != tt.stuck || tt.stuck && hint.Of(err) == "" {
					t.Errorf("after a while: %v", err)
				}
				time.Sleep(24 * time.Hour) // and on
				if tt.stuck {
					ring.set(func(r *fakeRing) { r.exercise, r.refresh = nil, nil })
					time.Sleep(24 * time.Hour)
				}
				if err := h.Turning(); err != nil {
					t.Errorf("in the end: %v", err)
				}
			})
		})
	}
}

// A long interval is no standstill, and neither is a loop that has not begun.
func TestTurningWithLongIntervals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, _ := ringOf(t)
		if err := New(Config{Ring: ring}).Turning(); err != nil {
			t.Error(err)
		}
		h := start(t, Config{Ring: ring, ProbeInterval: time.Hour, RefreshInterval: time.Hour})
		for range 300 {
			time.Sleep(time.Minute)
			if err := h.Turning(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
