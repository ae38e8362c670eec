package manifests_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/manifests"
)

var metricName = regexp.MustCompile(`hsm_kms_[a-z0-9_]+`)

// documented are the metrics in docs/operations.md, which a test of kmsplugin/metrics holds to what the program gives.
func documented(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("../docs/operations.md")
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
		t.Fatalf("only %d metrics found in docs/operations.md", len(known))
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
		if !slices.Contains([]string{"critical", "warning", "info"}, rule.Labels["severity"]) || rule.Annotations["summary"] == "" || rule.Annotations["description"] == "" {
			t.Errorf("%s: %+v", rule.Alert, rule)
		}
	}
}

func TestAlertsWithPromtool(t *testing.T) {
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
