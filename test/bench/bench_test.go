package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsm-kms/hsm-kms/test/bench/measure"
)

// samples are three rounds, the second of them on a machine that was busy with something else.
func samples() rounds {
	r := rounds{}
	for _, busy := range []time.Duration{1, 10, 1} {
		at := func(p50 time.Duration) sample {
			return sample{Ops: 1000, Elapsed: 1000 * p50 * busy, P50: p50 * busy, P99: 2 * p50 * busy}
		}
		r.add(point{whoN, "", opEncrypt, 1, 0}, at(60*time.Microsecond))
		r.add(point{whoR, profileGCM, opEncrypt, 1, 0}, at(20*time.Microsecond))
		r.add(point{whoPlugin, profileGCM, opEncrypt, 1, 0}, at(100*time.Microsecond))
	}
	return r
}

func TestRatiosAreMadeWithinARound(t *testing.T) {
	t.Parallel()
	plugin := point{whoPlugin, profileGCM, opEncrypt, 1, 0}
	for i, got := range samples().perRound(plugin, latencyRatio) {
		if got != 1.25 {
			t.Errorf("round %d: p50/(N+R) = %v, want 1.25", i, got)
		}
	}
	for i, got := range samples().perRound(plugin, rateRatio) {
		if got < 0.799 || got > 0.801 {
			t.Errorf("round %d: rate ratio = %v, want 0.8", i, got)
		}
	}
}

func TestResultsAreForPeopleAndForBenchstat(t *testing.T) {
	t.Parallel()
	results := &table{measured: samples()}
	results.Figure("start, SoftHSM", 400, "ms", measure.Below(300))
	results.Figure("told only", 1, "s", nil)
	if got := results.Missed(); got != 1 {
		t.Errorf("%d limits missed, want 1", got)
	}
	dir := filepath.Join(t.TempDir(), "results")
	if err := (&measure.Flags{Out: dir}).Prepare(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := save(results, dir); err != nil {
			t.Fatal(err)
		}
	}
	latest, err := os.ReadFile(filepath.Join(dir, latestFile))
	if err != nil {
		t.Fatal(err)
	}
	previous, err := os.ReadFile(filepath.Join(dir, previousFile))
	if err != nil || !bytes.Equal(latest, previous) {
		t.Errorf("the results before are not kept: %v", err)
	}
	for want, times := range map[string]int{
		"BenchmarkKMS/who=plugin/delay=0s/profile=aes-gcm/op=Encrypt/clients=1 1000 100000 p50-ns 200000 p99-ns 10000.0 ops/s 1.2500 p50-ratio 0.8000 rate-ratio\n": 2,
		"BenchmarkKMS/who=R/delay=0s/profile=aes-gcm/op=Encrypt/clients=1 ":                                                                                         3,
		"BenchmarkFigure/start_SoftHSM_in_ms 1 400 value\n":                                                                                                         1,
		"MISS": 1,
	} {
		if got := strings.Count(string(latest), want); got != times {
			t.Errorf("%d times %q, want %d", got, want, times)
		}
	}
}

// Those who ask count what fails, and the longest time in which nobody had an answer, that which goes on now included. A request
// that is cut short by the end is no failure.
func TestOutageIsCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := &asking{good: make([]int, 2), last: time.Now()}
		ended, end := context.WithCancel(t.Context())
		end()
		broken := errors.New("broken")
		for _, one := range []struct {
			ctx   context.Context
			after time.Duration
			err   error
		}{
			{t.Context(), 300 * time.Millisecond, broken}, {t.Context(), 100 * time.Millisecond, nil}, {t.Context(), 50 * time.Millisecond, nil},
			{ended, 0, broken},
		} {
			time.Sleep(one.after)
			if got := a.note(one.ctx, 1, one.err); got != (one.err == nil) {
				t.Errorf("%v: %t", one.err, got)
			}
		}
		if got, want := a.look(), (outage{400 * time.Millisecond, 1, broken}); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		time.Sleep(time.Second)
		if got, want := a.look(), (outage{Longest: time.Second}); got != want {
			t.Errorf("afterwards %+v, want %+v", got, want)
		}
		if a.good[0] != 0 || a.good[1] != 2 {
			t.Errorf("answers: %v", a.good)
		}
	})
}
