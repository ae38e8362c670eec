package manifests_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/hsm-kms/hsm-kms/manifests"
)

var metricName = regexp.MustCompile(`hsm_kms_[a-z0-9_]+`)

// documented are the metrics in docs/metrics.md, which a test of kmsplugin/metrics holds to what the program gives.
func documented(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(hsm_kms_[a-z0-9_]+)` \\| (\\w+)").FindAllStringSubmatch(string(text), -1) {
		known[row[1]] = true
		if row[2] == "histogram" {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				known[row[1]+suffix] = true
			}
		}
	}
	if len(known) < 30 {
		t.Fatalf("only %d metrics found in docs/metrics.md", len(known))
	}
	return known
}

func checkMetrics(t *testing.T, expression string, known map[string]bool) {
	t.Helper()
	for _, name := range metricName.FindAllString(expression, -1) {
		if !known[name] {
			t.Errorf("there is no metric %s: %s", name, expression)
		}
	}
}

func TestAlerts(t *testing.T) {
	t.Parallel()
	file := render(t, "alerts", manifests.Values{})[0]
	var rules struct {
		Groups []struct {
			Name  string `json:"name"`
			Rules []struct {
				Alert       string            `json:"alert"`
				Expr        string            `json:"expr"`
				For         string            `json:"for"`
				Labels      map[string]string `json:"labels"`
				Annotations map[string]string `json:"annotations"`
			} `json:"rules"`
		} `json:"groups"`
	}
	strictly(t, file, &rules)
	known := documented(t)
	tests, err := os.ReadFile("testdata/alerts_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range rules.Groups[0].Rules {
		if !regexp.MustCompile(`alertname(: |=")` + rule.Alert + `\b`).Match(tests) {
			t.Errorf("%s fires in none of the rules' unit tests", rule.Alert)
		}
		checkMetrics(t, rule.Expr, known)
		if !slices.Contains([]string{"critical", "warning", "info"}, rule.Labels["severity"]) || rule.Annotations["summary"] == "" || rule.Annotations["runbook_url"] == "" || rule.Annotations["description"] == "" {
			t.Errorf("%s: %+v", rule.Alert, rule)
		}
	}
}

func TestAlertsWithPromtool(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	promtool := tool(t, "promtool")
	paths := write(t, render(t, "alerts", manifests.Values{}))
	rules := paths["hsm-kms.rules.yaml"]
	runTool(t, promtool, "check", "rules", rules)
	tests, err := os.ReadFile("testdata/alerts_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(filepath.Dir(rules), "test.yaml")
	if err := os.WriteFile(path, []byte(strings.Replace(string(tests), "[RULES]", "["+rules+"]", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	runTool(t, promtool, "test", "rules", path)
}

func TestDashboard(t *testing.T) {
	t.Parallel()
	var dashboard struct {
		Title  string
		UID    string
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr, RefID string }

			FieldConfig struct{ Defaults struct{ Unit string } }
		}
	}
	if err := json.Unmarshal(render(t, "dashboard", manifests.Values{})[0].Content, &dashboard); err != nil {
		t.Fatal(err)
	}
	known := documented(t)
	ids := map[int]bool{}
	for i, p := range dashboard.Panels {
		if ids[p.ID] || p.Title == "" || len(p.Targets) == 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %+v", p)
		}
		ids[p.ID] = true
		for _, q := range p.Targets {
			checkMetrics(t, q.Expr, known)
			if unit := unitOf(q.Expr); unit != p.FieldConfig.Defaults.Unit {
				t.Errorf("panel %s has the unit %q, and %s gives %q", p.Title, p.FieldConfig.Defaults.Unit, q.Expr, unit)
			}
			if !strings.Contains(q.Expr, `{cluster=~"$cluster", instance=~"$instance"}`) {
				t.Errorf("panel %s shows other nodes than the chosen ones: %s", p.Title, q.Expr)
			}
			if !metricName.MatchString(q.Expr) {
				t.Errorf("panel %s asks for nothing of ours: %s", p.Title, q.Expr)
			}
		}
		for _, o := range dashboard.Panels[:i] {
			a, b := p.GridPos, o.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("panels %s and %s overlap", p.Title, o.Title)
			}
		}
	}
}

// unitOf is Grafana's name of the unit of what an expression gives, by the names of metrics and functions.
func unitOf(expr string) string {
	name := metricName.FindString(expr)
	switch {
	case strings.HasPrefix(expr, "histogram_quantile(") && strings.HasSuffix(name, "_seconds_bucket"):
		return "s"
	case strings.Contains(expr, "rate(") && name == "hsm_kms_operations_total":
		return "reqps"
	case strings.Contains(expr, "rate("):
		return "ops"
	case strings.HasSuffix(name, "_timestamp_seconds") && strings.Contains(expr, "time()"):
		return "s"
	case strings.HasSuffix(name, "_bytes"):
		return "bytes"
	default:
		return "short" // counts, and 0 or 1
	}
}

func TestPodMonitor(t *testing.T) {
	t.Parallel()
	v := changed(func(v *manifests.Values) { v.HTTPAddress, v.Cluster = "0.0.0.0:9808", `odd: "c"` })
	var monitor struct {
		APIVersion string                           `json:"apiVersion"`
		Kind       string                           `json:"kind"`
		Metadata   struct{ Name, Namespace string } `json:"metadata"`
		Spec       struct {
			JobLabel  string                                  `json:"jobLabel"`
			Selector  struct{ MatchLabels map[string]string } `json:"selector"`
			Endpoints []struct {
				Path, Scheme, Interval string
				Relabelings            []struct {
					SourceLabels                    []string
					Regex, TargetLabel, Replacement string
				}
			} `json:"podMetricsEndpoints"`
		} `json:"spec"`
	}
	strictly(t, render(t, "podmonitor", v)[0], &monitor)
	var pod corev1.Pod
	strictly(t, render(t, "static-pod", v)[0], &pod)
	spec := monitor.Spec
	if monitor.Kind != "PodMonitor" || monitor.Metadata.Namespace != pod.Namespace || len(spec.Endpoints) != 1 {
		t.Fatalf("%+v", monitor)
	}
	if !labels.SelectorFromSet(spec.Selector.MatchLabels).Matches(labels.Set(pod.Labels)) {
		t.Errorf("it selects %v, and the pod has %v", spec.Selector.MatchLabels, pod.Labels)
	}
	if job := pod.Labels[spec.JobLabel]; job != "hsm-kms" {
		t.Errorf("the job is %q, and the alert HsmKmsGone goes by hsm-kms", job)
	}
	for ip, want := range map[string]string{"10.0.0.5": "10.0.0.5:9808", "fd00::5": "[fd00::5]:9808"} {
		result := map[string]string{}
		for _, r := range spec.Endpoints[0].Relabelings {
			value := map[string]string{"__meta_kubernetes_pod_ip": ip, "__meta_kubernetes_pod_node_name": "cp-1"}[strings.Join(r.SourceLabels, ";")]
			if r.Regex == "" {
				r.Regex = "(.*)"
			}
			if r.Replacement == "" {
				r.Replacement = "$1"
			}
			if anchored := regexp.MustCompile("^(?:" + r.Regex + ")$"); anchored.MatchString(value) { // as Prometheus anchors it
				result[r.TargetLabel] = anchored.ReplaceAllString(value, r.Replacement)
			}
		}
		if wanted := map[string]string{"__address__": want, "instance": "cp-1", "cluster": v.Cluster}; !maps.Equal(result, wanted) {
			t.Errorf("%s is scraped as %v, want %v", ip, result, wanted)
		}
	}
	for _, address := range []string{"127.0.0.1:9808", "[::1]:9808", "localhost:9808", "", "0.0.0.0:0"} {
		v.HTTPAddress = address
		if _, err := manifests.Render("podmonitor", v); err == nil {
			t.Errorf("a PodMonitor for http.address %q, which Prometheus cannot reach", address)
		}
	}
}

func TestScrapeConfig(t *testing.T) {
	t.Parallel()
	promtool := tool(t, "promtool")
	for name, v := range map[string]manifests.Values{
		"nodes": changed(func(v *manifests.Values) { v.Targets, v.Cluster = []string{"cp-1:9808", "[fd00::5]:9808"}, "prod" }),
		"agent": changed(func(v *manifests.Values) { v.Cluster, v.Hostname = `odd: "c"`, "cp-1" }),
	} {
		path := write(t, render(t, "scrape-config", v))["hsm-kms.scrape.yaml"]
		runTool(t, promtool, "check", "config", path)
		var file struct {
			ScrapeConfigs []struct {
				JobName       string `json:"job_name"`
				Interval      string `json:"scrape_interval"`
				StaticConfigs []struct {
					Targets []string
					Labels  map[string]string
				} `json:"static_configs"`
			} `json:"scrape_configs"`
		}
		strictly(t, render(t, "scrape-config", v)[0], &file)
		if got := file.ScrapeConfigs[0]; got.JobName != "hsm-kms" || got.StaticConfigs[0].Labels["cluster"] != v.Cluster || got.StaticConfigs[0].Labels["instance"] != v.Hostname {
			t.Errorf("%s: %+v", name, got)
		}
	}
	for _, v := range []manifests.Values{
		changed(func(v *manifests.Values) { v.Targets = []string{"cp-1"} }),
		changed(func(v *manifests.Values) { v.HTTPAddress = "" }),
	} {
		if _, err := manifests.Render("scrape-config", v); err == nil {
			t.Errorf("a scrape configuration for %q and %q", v.HTTPAddress, v.Targets)
		}
	}
}
