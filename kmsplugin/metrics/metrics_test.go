package metrics

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/growmap"
	"github.com/hsm-kms/hsm-kms/kmsplugin/audit"
	"github.com/hsm-kms/hsm-kms/kmsplugin/hold/holdfile"
)

// token is an envelope.Token of which only the name and the generation are asked.
type token struct {
	envelope.Token
	name       string
	generation uint64
	sessions   int
}

func (t *token) Name() string       { return t.name }
func (t *token) Generation() uint64 { return t.generation }
func (t *token) Sessions() int      { return t.sessions }
func (t *token) Workers() (running int, resident, started, died uint64) {
	return 2, 3 << 20, t.generation + 1, t.generation
}

func (t *token) Nonces() map[envelope.KeyID]uint64 {
	return map[envelope.KeyID]uint64{id(2): uint64(t.sessions) * 10}
}

func (t *token) Suspended() map[envelope.KeyID]error {
	return map[envelope.KeyID]error{id(2): errors.New("CKR_KEY_HANDLE_INVALID")}
}

func id(n byte) envelope.KeyID {
	return envelope.KeyID{Ring: "kube-secrets", Version: "x0" + string('0'+rune(n)), Fingerprint: [8]byte{n}}
}

func version(n byte, state envelope.State, ready bool) envelope.Version {
	return envelope.Version{
		Key:   envelope.Key{ID: id(n), Activation: time.Unix(1000*int64(n), 0)},
		State: state, Works: true, Ready: ready, Until: time.Unix(1000*int64(n)+86400, 0),
	}
}

// full returns metrics in which every series that can be has been made.
func full() (*Metrics, *token) {
	m := New("v1.2.3", "abc")
	view := envelope.View{
		Versions: []envelope.Version{
			version(1, envelope.Retained, true), version(2, envelope.Current, true),
			version(3, envelope.Pending, true), version(4, envelope.Pending, false), version(5, envelope.Refused, false),
		},
		LastRead: time.Unix(5000, 500e6), Tokens: []string{"hsm-a", "hsm-b", "hsm-c"},
		Problem: envelope.ErrAmbiguous,
	}
	view.Current, view.Deferred = &view.Versions[1], &view.Versions[3]
	view.Current.Waits = []envelope.Wait{{Token: "hsm-b", Lacks: true}, {Token: "hsm-c"}}
	view.Deferred.Waits = []envelope.Wait{{Token: "hsm-b", Lacks: true, Absent: true}}
	m.ObserveRing(func() envelope.View { return view })
	a := &token{name: "hsm-a", generation: 3, sessions: 4}
	m.ObserveTokens(map[string][]envelope.Token{"kube-secrets": {a, &token{name: "hsm-b"}}})
	ObserveReadRings(m, []oldRing{{}})
	m.ObserveAudit(func() audit.Stats { return audit.Stats{Sequence: 9, Failures: 3, Lost: 2, Failing: true} })
	m.ObserveSocket(lostSocket{})
	m.ObserveHold(func() *holdfile.State {
		return &holdfile.State{Limit: time.Hour, Used: time.Minute, Holding: true, Until: time.Unix(6000, 0), Listed: 9, Held: 8, Full: true}
	})
	m.HSMCall("hsm-a", "C_Encrypt", "CKR_OK", time.Millisecond)
	return m, a
}

// lostSocket was made again twice and is lost now.
type lostSocket struct{}

func (lostSocket) Listening() bool  { return false }
func (lostSocket) Renewals() uint64 { return 2 }

// values are all series with the names given, as "name{labels} value".
func values(t *testing.T, m *Metrics) map[string]float64 {
	t.Helper()
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, s := range f.GetMetric() {
			var labels []string
			for _, l := range s.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			name := strings.TrimPrefix(f.GetName(), "hsm_kms_") + "{" + strings.Join(labels, ",") + "}"
			switch {
			case s.Counter != nil:
				got[name] = s.Counter.GetValue()
			case s.Gauge != nil:
				got[name] = s.Gauge.GetValue()
			case s.Histogram != nil:
				got[name] = float64(s.Histogram.GetSampleCount())
			}
		}
	}
	return got
}

func want(t *testing.T, m *Metrics, expected map[string]float64) {
	t.Helper()
	got := values(t, m)
	for name, value := range expected {
		if v, ok := got[name]; !ok || v != value {
			t.Errorf("%s = %v (there: %v), want %v", name, v, ok, value)
		}
	}
}

func TestValues(t *testing.T) {
	t.Parallel()
	m, a := full()
	want(t, m, map[string]float64{
		"ring_versions{retained}": 1, "ring_versions{current}": 1, "ring_versions{pending}": 2, "ring_versions{refused}": 1,
		"ring_pending_ready{}": 1, "ring_next_activation_timestamp_seconds{}": 3000, "ring_deferred{}": 1, "ring_deferred_until_timestamp_seconds{}": 90400, "current_key_missing{hsm-b}": 1, "current_key_missing{hsm-c}": 0, "ring_problem{}": 1,
		"ring_last_refresh_timestamp_seconds{}": 5000.5, "current_key_activation_timestamp_seconds{}": 2000,
		"current_key_info{" + id(2).String() + "}": 1, "seals_total{" + id(2).String() + "}": 0,
		"token_up{kube-secrets,hsm-a}": 1, "token_up{kube-secrets,hsm-b}": 0, "token_generation{hsm-a}": 3, "token_recoveries_total{hsm-a}": 2,
		"token_recoveries_total{hsm-b}": 0, "token_sessions{hsm-a}": 4, "token_suspended_keys{hsm-a}": 1,
		"worker_processes{hsm-a}": 2, "worker_resident_memory_bytes{hsm-a}": 3 << 20, "worker_starts_total{hsm-a}": 4, "worker_deaths_total{hsm-a}": 3,
		"nonces_total{" + id(2).String() + ",hsm-a}": 40, "nonces_total{" + id(2).String() + ",hsm-b}": 0,
		"audit_sequence{}": 9, "audit_failures_total{}": 3, "audit_lost_operations_total{}": 2, "audit_failing{}": 1,
		"socket_listening{}": 0, "socket_renewals_total{}": 2,
		"hold_limit_seconds{}": 3600, "hold_used_seconds{}": 60, "hold_armed{}": 0, "hold_active{}": 1, "hold_until_timestamp_seconds{}": 6000,
		"hold_listed_deks{}": 9, "hold_held_deks{}": 8, "hold_list_full{}": 1,
		"hsm_calls_total{C_Encrypt,CKR_OK,hsm-a}": 1, "hsm_call_duration_seconds{C_Encrypt,hsm-a}": 1,
		"operations_total{Unavailable,Decrypt}": 0, "probe_last_success_timestamp_seconds{}": 0,
	})

	a.generation = 0 // away, and then back
	want(t, m, map[string]float64{"token_up{kube-secrets,hsm-a}": 0, "token_recoveries_total{hsm-a}": 2})
	a.generation = 5
	want(t, m, map[string]float64{"token_up{kube-secrets,hsm-a}": 1, "token_recoveries_total{hsm-a}": 4})

	m.Answered("Encrypt", codes.OK, time.Millisecond)
	m.Answered("Decrypt", codes.NotFound, time.Millisecond)
	m.Answered("Decrypt", codes.DataLoss, time.Millisecond)
	m.Answered("Decrypt", codes.Code(1<<20), time.Millisecond)
	m.Answered("anything", codes.OK, time.Millisecond)
	m.KeyUsed("Encrypt", id(2).String(), codes.OK)
	m.KeyUsed("Encrypt", id(2).String(), codes.Unavailable)
	m.KeyUsed("Decrypt", id(9).String(), codes.NotFound)
	m.KeyUsed("Decrypt", "no key_id at all", codes.NotFound)
	m.KeyUsed("Decrypt", id(5).String(), codes.NotFound)
	m.KeyUsed("Decrypt", id(2).String(), codes.OK)
	m.Probed(nil, time.Millisecond)
	m.Probed(errors.New("x"), time.Millisecond)
	m.PeerRefused()
	m.ConnectionDropped()
	want(t, m, map[string]float64{
		"operations_total{OK,Encrypt}": 1, "operations_total{NotFound,Decrypt}": 1, "operations_total{Other,Decrypt}": 2,
		"operations_total{OK,Other}": 1, "operation_duration_seconds{Decrypt}": 3, "operations_total{OK,Status}": 0,
		"seals_total{" + id(2).String() + "}": 1, "seals_total{" + id(1).String() + "}": 0,
		"unknown_key_requests_total{}": 2, "refused_key_requests_total{}": 1,
		"probes_total{ok}": 1, "probes_total{failed}": 1, "probe_duration_seconds{}": 2,
		"peers_refused_total{}": 1, "connections_dropped_total{}": 1,
	})
	if at := values(t, m)["probe_last_success_timestamp_seconds{}"]; time.Since(time.Unix(int64(at), 0)).Abs() > time.Minute {
		t.Errorf("last good probe at %v", at)
	}
}

// TestEmptyRing: no current key, none pending, never read.
func TestEmptyRing(t *testing.T) {
	t.Parallel()
	m := New("", "")
	m.ObserveRing(func() envelope.View { return envelope.View{} })
	want(t, m, map[string]float64{"ring_last_refresh_timestamp_seconds{}": 0, "ring_versions{current}": 0, "ring_problem{}": 0})
	for name := range values(t, m) {
		if strings.HasPrefix(name, "current_key") || strings.HasPrefix(name, "ring_next") || strings.HasPrefix(name, "seals") {
			t.Errorf("%s is there", name)
		}
	}
}

// TestSealsOfAKeyThatIsGone: its series goes with it.
func TestSealsOfAKeyThatIsGone(t *testing.T) {
	t.Parallel()
	m := New("", "")
	view := envelope.View{Versions: []envelope.Version{version(1, envelope.Current, true), version(1, envelope.Current, true)}}
	m.ObserveRing(func() envelope.View { return view })
	m.KeyUsed("Encrypt", id(1).String(), codes.OK)
	m.KeyUsed("Encrypt", id(2).String(), codes.OK)
	want(t, m, map[string]float64{"seals_total{" + id(1).String() + "}": 1}) // held twice: one series
	view = envelope.View{}
	for name := range values(t, m) {
		if strings.HasPrefix(name, "seals") {
			t.Errorf("%s is there", name)
		}
	}
}

func TestResultsOfAModuleAreBounded(t *testing.T) {
	t.Parallel()
	m := New("", "")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 2 * maxCallSeries {
				m.HSMCall("a", "C_Encrypt", fmt.Sprintf("0x%08x", 0x80000000+i), 0)
			}
		})
	}
	wg.Wait()
	if n := testutil.CollectAndCount(m.calls.total); n != maxCallSeries+1 {
		t.Errorf("%d series", n)
	}
	want(t, m, map[string]float64{"hsm_calls_total{C_Encrypt,other,a}": 4 * maxCallSeries, "hsm_call_duration_seconds{C_Encrypt,a}": 8 * maxCallSeries})
	for i := range 2 * growmap.MaxCounts {
		m.KeyUsed("Encrypt", fmt.Sprint(i), codes.OK)
	}
	if n := len(m.seals.All()); n != growmap.MaxCounts {
		t.Errorf("%d keys", n)
	}
}

func TestCountingAllocatesNothing(t *testing.T) {
	m, _ := full()
	keyID := id(2).String()
	m.KeyUsed("Encrypt", keyID, codes.OK)
	if n := testing.AllocsPerRun(100, func() {
		m.HSMCall("hsm-a", "C_Encrypt", "CKR_OK", time.Millisecond)
		m.Answered("Encrypt", codes.OK, time.Millisecond)
		m.KeyUsed("Encrypt", keyID, codes.OK)
		m.KeyUsed("Decrypt", keyID, codes.OK)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestLint(t *testing.T) {
	t.Parallel()
	m, _ := full()
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// TestDocumented: docs/metrics.md has a row for every metric, with its type and labels, and for no other.
func TestDocumented(t *testing.T) {
	t.Parallel()
	m, _ := full()
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(hsm_kms_[a-z0-9_]+)` \\| ([^|]+) \\|").FindAllSubmatch(doc, -1) {
		if !strings.HasPrefix(string(row[1]), "hsm_kms_operate_") { // those have a test of their own
			documented[string(row[1])] = string(row[2])
		}
	}
	names := map[string]bool{}
	for _, f := range families {
		names[f.GetName()] = true
		column := documented[f.GetName()]
		if column != "" && !strings.HasPrefix(column, strings.ToLower(f.GetType().String())) {
			t.Errorf("docs/metrics.md does not say that %s is a %s: %s", f.GetName(), f.GetType(), column)
		}
		for _, label := range f.GetMetric()[0].GetLabel() {
			if column != "" && !strings.Contains(column, "`"+label.GetName()+"`") {
				t.Errorf("docs/metrics.md does not name the label %s of %s: %s", label.GetName(), f.GetName(), column)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if !strings.HasPrefix(name, "hsm_kms_") {
			t.Errorf("%s does not begin with hsm_kms_", name)
		}
		if documented[name] == "" {
			t.Errorf("docs/metrics.md has no row for %s", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(documented)) {
		// Others than Linux give fewer figures of the process.
		if !names[name] && !strings.HasPrefix(name, "hsm_kms_process_") {
			t.Errorf("docs/metrics.md has a row for %s, which is not there", name)
		}
	}
}

func BenchmarkHSMCall(b *testing.B) {
	m, _ := full()
	for b.Loop() {
		m.HSMCall("hsm-a", "C_Encrypt", "CKR_OK", time.Millisecond)
	}
}

func TestObserveWhileCounting(t *testing.T) {
	t.Parallel()
	m, _ := full()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			m.HSMCall("hsm-a", "C_Decrypt", fmt.Sprint(i%20), 0)
			m.KeyUsed("Encrypt", fmt.Sprint(i%20), codes.OK)
		}
	})
	for range 20 {
		values(t, m)
	}
	cancel()
	wg.Wait()
}
