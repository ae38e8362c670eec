package main

import (
	"bytes"
	"crypto/aes"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/storage/value"
	transform "k8s.io/apiserver/pkg/storage/value/encrypt/aes"

	"github.com/hsm-kms/hsm-kms/test/bench/measure"
	"github.com/hsm-kms/hsm-kms/test/evidence/kubestore"
)

// measuredTable has three rounds, the second of them on a machine that was busy with something else.
func measuredTable() *table {
	t := &table{options: options{rounds: 3}, variants: []string{none, aescbc, "hsm-kms, 5 ms"}, measured: map[string][]turn{}}
	for _, busy := range []time.Duration{1, 10, 1} {
		for i, v := range t.variants {
			took := time.Duration(i+1) * time.Second * busy
			r := turn{Ready: took, List: took, Again: took, Decrypt: i * 100, AtOnce: i, Loads: map[kind]measure.Sample{}}
			for _, k := range kinds() {
				r.Loads[k] = measure.Sample{Ops: 100, Elapsed: 100 * took, P50: took, P99: 2 * took}
			}
			t.measured[v] = append(t.measured[v], r)
		}
	}
	return t
}

func TestRatiosAreMadeWithinARound(t *testing.T) {
	t.Parallel()
	// Medians over one another would give the same here only by luck: the busy round is told apart.
	table := measuredTable()
	table.measured[none][0].Ready = 500 * time.Millisecond
	table.measured[none][1].Ready = 5 * time.Second
	for _, tc := range []struct{ variant, to, want string }{
		{"hsm-kms, 5 ms", none, "6.00"}, {"hsm-kms, 5 ms", aescbc, "1.50"}, {none, none, "1.00"}, {none, "missing", "-"},
	} {
		if got := table.ratio(tc.variant, tc.to, ready); got != tc.want {
			t.Errorf("%s to %s: %s, want %s", tc.variant, tc.to, got, tc.want)
		}
	}
}

func TestResultsAreForPeopleAndForBenchstat(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := measuredTable().save(&out); err != nil {
		t.Fatal(err)
	}
	for want, times := range map[string]int{
		"BenchmarkStart/encryption=hsm-kms_5_ms 1 3000000000 ready-ns 3000000000 list-ns 6000000000 listed-ns 200 decrypts\n":        2,
		"BenchmarkSecrets/encryption=aescbc/op=create/clients=8 100 2000000000 p50-ns 4000000000 p99-ns 0.5 ops/s\n":                 2,
		"BenchmarkSecretsHSM/encryption=none 1 0 calls\n":                                                                            3,
		"\npkg: github.com/hsm-kms/hsm-kms/test/bench/apiserver\n":                                                                   1,
		"# hsm-kms, 5 ms  3.00 s  3.00    1.50      -             3000 ms     3.00    3000 ms  6.00 s         3.00    1.50      200": 1,
	} {
		if got := strings.Count(out.String(), want); got != times {
			t.Errorf("%d times %q, want %d, in:\n%s", got, want, times, out.String())
		}
	}
}

func TestFilledIn(t *testing.T) {
	t.Parallel()
	const sum = "apiserver_watch_cache_initialization_duration_seconds_sum"
	for _, tc := range []struct {
		metrics string
		want    time.Duration
	}{
		{"", 0},
		{sum + `{group="",resource="configmaps"} 3`, 0},
		{sum + `{group="",resource="configmaps"} 3` + "\n" + sum + `{group="",resource="secrets"} 1.25`, 1250 * time.Millisecond},
		{sum + `{group="",resource="secrets"} x`, 0},
	} {
		if got := filledIn([]byte(tc.metrics)); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.metrics, got, tc.want)
		}
	}
}

func TestMinor(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]int{"Kubernetes v1.37.2": 37, "Kubernetes v1.9.0": 9, "something": 0, "": 0} {
		if got := minor(version); got != want {
			t.Errorf("%q: %d, want %d", version, got, want)
		}
	}
}

// The limit is that of an API server with 200 DEKs whose HSM is away.
func TestJudge(t *testing.T) {
	t.Parallel()
	results := &table{variants: []string{none, aescbc}, measured: map[string][]turn{}}
	for _, n := range []int{200, 2000} {
		results.variants = append(results.variants, fmt.Sprintf("hsm-kms, %d DEKs, 0 ms", n), fmt.Sprintf("hsm-kms, %d DEKs%s", n, awayName))
	}
	for _, v := range results.variants {
		took := time.Second
		if v != none && v != aescbc {
			took = 2 * time.Second
		}
		results.measured[v] = []turn{{Ready: took, List: took}}
	}
	results.judge()
	var text strings.Builder
	results.Judged(&text)
	if got := results.Missed(); got != 1 || strings.Count(text.String(), "MISS") != 1 || len(results.Figures) != 16 {
		t.Errorf("%d limits missed:\n%s", got, text.String())
	}
}

// What is put into etcd must be what the configuration beside it can read.
func TestStoresHoldWhatTheirConfigurationReads(t *testing.T) {
	t.Parallel()
	const path = "/registry/secrets/a/b"
	plain := []byte("k8s\x00 something")
	s, err := cbcStore()
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := s.seal(t.Context(), 0, path, plain)
	if err != nil {
		t.Fatal(err)
	}
	key := s.providers[0]["aescbc"].(object)["keys"].([]object)[0]
	raw, err := base64.StdEncoding.DecodeString(key["secret"].(string))
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(raw)
	if err != nil {
		t.Fatal(err)
	}
	prefix := fmt.Appendf(nil, "k8s:enc:aescbc:v1:%s:", key["name"])
	opened, _, err := transform.NewCBCTransformer(block).TransformFromStorage(t.Context(), bytes.TrimPrefix(sealed, prefix), value.DefaultContext(path))
	if err != nil || !bytes.Equal(opened, plain) || !bytes.HasPrefix(sealed, prefix) {
		t.Errorf("%.40q opens as %q: %v", sealed, opened, err)
	}
	if same, err := plainStore().seal(t.Context(), 0, path, plain); err != nil || !bytes.Equal(same, plain) {
		t.Errorf("without encryption: %q, %v", same, err)
	}
}

// A list must meet every DEK.
func TestDEKsTakeTurns(t *testing.T) {
	t.Parallel()
	var deks []*kubestore.DEK
	for i := range 3 {
		deks = append(deks, &kubestore.DEK{Provider: "p", KeyID: "k", Wrapped: fmt.Appendf(nil, "wrapped-%d", i), Plain: make([]byte, 32)})
	}
	for i := range 7 {
		sealed, err := kmsStore(deks).seal(t.Context(), i, "/a", []byte("b"))
		if err != nil || !bytes.Contains(sealed, deks[i%3].Wrapped) {
			t.Errorf("the Secret %d is not under the DEK %d: %v", i, i%3, err)
		}
	}
}
