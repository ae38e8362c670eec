package operator

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator/state"
)

// gathered are the values by name and labels.
func gathered(t *testing.T, o *Operator) map[string]float64 {
	t.Helper()
	families, err := o.figures.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := strings.TrimPrefix(f.GetName(), metricsPrefix)
			for _, label := range m.GetLabel() {
				if f.GetName() != metricsPrefix+"info" {
					name += " " + label.GetValue()
				}
			}
			values[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return values
}

// A leader gives the whole picture, and an instance that does not lead only its own.
func TestMetrics(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	p := newPlugin(t, keyID(t, time.Now().Add(-time.Hour)))
	one, two := newOperator(t, a, p, "n1"), newOperator(t, a, p, "n2")
	for _, o := range []*Operator{one, two} {
		if _, err := o.Once(t.Context()); (err == nil) != (o == two) { // there is no etcd
			t.Fatal(err)
		}
		o.self.CertificateEnds = time.Now().Add(time.Hour)
	}
	leader, other := gathered(t, one), gathered(t, two)
	for name, want := range map[string]float64{"info": 1, "leading": 1, "state Blocked": 1, "state Steady": 0, "nodes_ready": 1, "nodes_expected": 1, "objects_left": 0, "retirable_keys": 0, "actions_total read failed": 1} {
		if got, ok := leader[name]; !ok || got != want {
			t.Errorf("the leader: %s is %v, want %v", name, got, want)
		}
	}
	for _, name := range []string{"published_timestamp_seconds", "certificate_expiry_timestamp_seconds", "state_since_timestamp_seconds", "next_step_timestamp_seconds", "last_pass_timestamp_seconds", "last_error_timestamp_seconds", "api_requests_total 2xx", "api_requests_total 4xx"} {
		if leader[name] == 0 {
			t.Errorf("the leader: no %s: %v", name, leader)
		}
	}
	if want := []string{"api_requests_total 2xx", "api_requests_total 4xx", "certificate_expiry_timestamp_seconds", "info", "leading", "published_timestamp_seconds"}; !slices.Equal(slices.Sorted(maps.Keys(other)), want) || other["leading"] != 0 {
		t.Errorf("another one: %v", other)
	}
	one.stepDown(t.Context())
	if one.forget(); gathered(t, one)["leading"] != 0 || len(gathered(t, one)) > len(other)+1 {
		t.Errorf("it leads no more: %v", gathered(t, one))
	}
	a.http.Close()
	if _, err := two.Once(t.Context()); err == nil || gathered(t, two)["api_requests_total none"] == 0 {
		t.Errorf("%v, %v", err, gathered(t, two))
	}
}

// docs/metrics.md has a row for every metric of operate, with its type and labels, and for no other.
func TestMetricsDocumented(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	o := newOperator(t, a, newPlugin(t, keyID(t, time.Now().Add(-time.Hour))), "n1")
	if _, err := o.Once(t.Context()); err == nil {
		t.Fatal("there is no etcd")
	}
	o.self.CertificateEnds = time.Now()
	problems, err := testutil.GatherAndLint(o.figures.registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	doc, err := os.ReadFile("../../../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(hsm_kms_operate_[a-z0-9_]+)` \\| ([^|]+) \\|").FindAllSubmatch(doc, -1) {
		documented[string(row[1])] = string(row[2])
	}
	families, err := o.figures.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		column := documented[f.GetName()]
		delete(documented, f.GetName())
		if !strings.HasPrefix(column, strings.ToLower(f.GetType().String())) {
			t.Errorf("docs/metrics.md does not say that %s is a %s: %q", f.GetName(), f.GetType(), column)
		}
		for _, label := range f.GetMetric()[0].GetLabel() {
			if !strings.Contains(column, "`"+label.GetName()+"`") {
				t.Errorf("docs/metrics.md does not name the label %s of %s: %q", label.GetName(), f.GetName(), column)
			}
		}
	}
	if len(documented) > 0 {
		t.Errorf("docs/metrics.md has rows for what is not there: %v", documented)
	}
	for _, action := range []state.Action{state.Look, state.Read, state.Prove, state.Migrate, state.Record, state.Forget} {
		if !strings.Contains(string(doc), string(action)) {
			t.Errorf("docs/metrics.md does not name the action %s", action)
		}
	}
}
