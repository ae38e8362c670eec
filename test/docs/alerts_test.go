package docs

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/hsm-kms/hsm-kms/manifests"
)

// TestAlerts: docs/alerts.md has a heading for each alert that hsm-kms manifests alerts prints, with its severity, a meaning
// and something to do, and for no other; the alert's runbook_url leads to that heading.
func TestAlerts(t *testing.T) {
	t.Parallel()
	files, err := manifests.Render("alerts", manifests.Values{})
	if err != nil {
		t.Fatal(err)
	}
	var printed struct {
		Groups []struct {
			Rules []struct {
				Alert       string            `json:"alert"`
				Labels      map[string]string `json:"labels"`
				Annotations map[string]string `json:"annotations"`
			} `json:"rules"`
		} `json:"groups"`
	}
	if err := yaml.Unmarshal(files[0].Content, &printed); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs/alerts.md"))
	if err != nil {
		t.Fatal(err)
	}
	anchors, rules := anchorsOf(string(text)), map[string]string{}
	for _, group := range printed.Groups {
		for _, rule := range group.Rules {
			rules[rule.Alert] = rule.Labels["severity"]
			url := rule.Annotations["runbook_url"]
			anchor, found := strings.CutPrefix(url, "https://github.com/hsm-kms/hsm-kms/blob/main/docs/alerts.md#")
			if !found || anchor != strings.ToLower(rule.Alert) || !anchors[anchor] {
				t.Errorf("%s: the runbook_url %q leads to no heading of its own in docs/alerts.md", rule.Alert, url)
			}
		}
	}
	sections := map[string]string{}
	for _, found := range regexp.MustCompile(`(?m)^## (HsmKms\w+)\n\n\*(\w+)\*: .{10,}\n\n.{10,}$`).FindAllStringSubmatch(string(text), -1) {
		sections[found[1]] = found[2]
	}
	if len(rules) == 0 || !maps.Equal(rules, sections) {
		t.Errorf("the rules are\n%v\nand docs/alerts.md has\n%v", rules, sections)
	}
}
