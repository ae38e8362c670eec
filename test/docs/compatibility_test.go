package docs

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestCompatibility: docs/compatibility.md has a row for each release of kube-apiserver that make compat builds, with the version
// that it builds, and a result of a day or none at all.
func TestCompatibility(t *testing.T) {
	t.Parallel()
	modules, err := filepath.Glob(filepath.Join(root, "test/tools/kube/1.*/go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	required := regexp.MustCompile(`(?m)^\s*(?:require )?k8s\.io/kubernetes v((1\.\d+)\.\d+)`)
	built := map[string]string{}
	for _, path := range append(modules, filepath.Join(root, "test/tools/kube/go.mod")) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		match := required.FindStringSubmatch(string(text))
		if match == nil {
			t.Fatalf("%s requires no k8s.io/kubernetes", path)
		}
		built[match[2]] = match[1]
	}
	text, err := os.ReadFile(filepath.Join(root, "docs/compatibility.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for _, row := range regexp.MustCompile(`(?m)^\| (1\.\d+) \| (1\.\d+\.\d+) \| (?:\d{4}-\d\d-\d\d \| passed|\| not run) \|$`).FindAllStringSubmatch(string(text), -1) {
		rows[row[1]] = row[2]
	}
	if len(built) < 8 || !maps.Equal(built, rows) {
		t.Errorf("make compat builds\n%v\nand docs/compatibility.md has\n%v", built, rows)
	}
}
