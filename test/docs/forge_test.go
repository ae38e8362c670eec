package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestForge: the files for the forge are YAML, workflows begin with few rights, and every action is pinned by its commit, with
// the version that it is beside it.
func TestForge(t *testing.T) {
	t.Parallel()
	var files []string
	for _, pattern := range []string{".github/*.yml", ".github/workflows/*.yml", ".github/ISSUE_TEMPLATE/*.yml"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %v, %v", pattern, found, err)
		}
		files = append(files, found...)
	}
	uses := regexp.MustCompile(`(?m)^\s*-?\s*uses: (.*)$`)
	pinned := regexp.MustCompile(`^[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$`)
	actions := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var parsed struct {
			Jobs        map[string]any
			Permissions map[string]string
		}
		if err := yaml.Unmarshal(text, &parsed); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if parsed.Jobs != nil && (len(parsed.Permissions) != 1 || parsed.Permissions["contents"] != "read") {
			t.Errorf("%s: the workflow may do more than read: %v", file, parsed.Permissions)
		}
		for _, match := range uses.FindAllStringSubmatch(string(text), -1) {
			actions++
			if !pinned.MatchString(match[1]) {
				t.Errorf("%s: %s is not pinned", file, match[1])
			}
		}
	}
	if actions == 0 {
		t.Error("no action was found: the search is broken")
	}
}
