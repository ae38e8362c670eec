package hardening

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// prometheus is a real one that scrapes the plugin and loads its alert rules.
type prometheus struct {
	url string
}

func newPrometheus(t *testing.T, w *rig) *prometheus {
	t.Helper()
	path, err := exec.LookPath("prometheus")
	if err != nil {
		notChecked(t, "prometheus is not installed (test/tools/need.sh checkers)")
	}
	dir := t.TempDir()
	rules, err := w.plugin.Run(t.Context(), "manifests", "alerts")
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`global: {scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms}
rule_files: [rules.yaml]
scrape_configs:
  - job_name: hsm-kms
    static_configs: [{targets: [%q]}]
`, w.http)
	for name, text := range map[string][]byte{"prometheus.yaml": []byte(config), "rules.yaml": rules} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	address := freeAddress(t)
	running, err := proc.Start(proc.Spec{
		Name: "prometheus", Path: path, Log: filepath.Join(dir, "log"),
		Args: []string{"--config.file=" + filepath.Join(dir, "prometheus.yaml"), "--storage.tsdb.path=" + filepath.Join(dir, "data"), "--web.listen-address=" + address},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		running.Kill()
		if t.Failed() {
			t.Logf("the end of Prometheus' log:\n%s", running.Tail(20))
		}
	})
	p := &prometheus{url: "http://" + address}
	eventually(t, func() error { _, err := get(w.within(patience), p.url+"/-/ready"); return err })
	return p
}

// query is the number of series that an expression gives now.
func (p *prometheus) query(ctx context.Context, expr string) (int, error) {
	var answer struct {
		Data struct {
			Result []json.RawMessage `json:"result"`
		} `json:"data"`
	}
	body, err := get(ctx, p.url+"/api/v1/query?query="+url.QueryEscape(expr))
	if err == nil {
		err = json.Unmarshal(body, &answer)
	}
	return len(answer.Data.Result), err
}

// Every query of the dashboard is run by a real Prometheus that scraped a real plugin with traffic, and gives something to
// draw; every alert rule can be evaluated, and none fires on a plugin that is well.
func TestPanelsAndRulesInPrometheus(t *testing.T) {
	t.Parallel()
	w := newRig(t, options{extra: "probeInterval: 1s\nrefreshInterval: 1s\noutageHold: 1h"}) // which has panels of its own
	p := newPrometheus(t, w)
	if _, err := w.plugin.RotateKey(w.within(patience), time.Hour); err != nil { // a panel shows when the next is due
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	traffic := make(chan struct{})
	go func() { defer close(traffic); trickle(ctx, w.client()) }()
	defer func() { cancel(); <-traffic }()

	queries := dashboardQueries(t, w)
	if len(queries) < 25 {
		t.Errorf("only %d queries were found in the dashboard", len(queries))
	}
	for title, expr := range queries {
		eventually(t, func() error {
			n, err := p.query(w.within(patience), expr)
			if err == nil && n == 0 && !strings.Contains(expr, "hsm_kms_operate_") { // those are of a process that does not run here
				err = fmt.Errorf("panel %s: nothing for %s", title, expr)
			}
			return err
		})
	}
	eventually(t, func() error { return p.rulesAreWell(w.within(patience)) })
}

// trickle asks as an API server does, well and badly, until ctx ends.
func trickle(ctx context.Context, client kmsapi.KeyManagementServiceClient) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		_ = once(ctx, client) // it ends with ctx
		<-tick.C
	}
}

// dashboardQueries are the queries by panel, with Grafana's variables filled in.
func dashboardQueries(t *testing.T, w *rig) map[string]string {
	t.Helper()
	text, err := w.plugin.Run(t.Context(), "manifests", "dashboard")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr, RefID string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	fill := strings.NewReplacer("$cluster", ".*", "$instance", ".*", "$__rate_interval", "2s")
	queries := map[string]string{}
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			expr := fill.Replace(target.Expr)
			if strings.Contains(expr, "$") {
				t.Errorf("panel %s has a variable that is not known: %s", panel.Title, expr)
			}
			queries[panel.Title+" "+target.RefID] = expr
		}
	}
	return queries
}

// rulesAreWell is an error unless each rule was evaluated without one, and none is active.
func (p *prometheus) rulesAreWell(ctx context.Context) error {
	var answer struct {
		Data struct {
			Groups []struct {
				Rules []struct{ Name, State, Health, LastError string }
			}
		}
	}
	body, err := get(ctx, p.url+"/api/v1/rules")
	if err == nil {
		err = json.Unmarshal(body, &answer)
	}
	if err != nil {
		return err
	}
	n := 0
	for _, group := range answer.Data.Groups {
		for _, rule := range group.Rules {
			n++
			if rule.Health != "ok" || rule.State != "inactive" {
				return fmt.Errorf("%+v", rule)
			}
		}
	}
	if n < 15 {
		return fmt.Errorf("only %d rules are loaded", n)
	}
	return nil
}
