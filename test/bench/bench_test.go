package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
