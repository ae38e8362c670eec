package docs

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/hsm-kms/hsm-kms/manifests"
)

// TestAlerts: docs/operations.md has a row for each alert that hsm-kms manifests alerts prints, with its severity, a meaning
// and something to do, and for no other.
func TestAlerts(t *testing.T) {
	t.Parallel()
	files, err := manifests.Render("alerts", manifests.Values{})
	if err != nil {
		t.Fatal(err)
	}
	var printed struct {
		Groups []struct {
			Rules []struct {
				Alert  string            `json:"alert"`
				Labels map[string]string `json:"labels"`
			} `json:"rules"`
		} `json:"groups"`
	}
	if err := yaml.Unmarshal(files[0].Content, &printed); err != nil {
		t.Fatal(err)
	}
	rules := map[string]string{}
	for _, group := range printed.Groups {
		for _, rule := range group.Rules {
			rules[rule.Alert] = rule.Labels["severity"]
		}
	}
	text, err := os.ReadFile(filepath.Join(root, "docs/operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(HsmKms\\w+)` \\| (\\w+) \\| [^|]{10,} \\| [^|]{10,} \\|$").FindAllStringSubmatch(string(text), -1) {
		rows[row[1]] = row[2]
	}
	if len(rules) == 0 || !maps.Equal(rules, rows) {
		t.Errorf("the rules are\n%v\nand docs/operations.md has\n%v", rules, rows)
	}
}
