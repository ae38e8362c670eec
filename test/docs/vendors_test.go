package docs

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// subjects are what every guide for a vendor says something about.
var subjects = []string{"module", "client configuration", "environment", "user and least rights", "profile", "PIN", "sessions", "HA", "clone and backup"}

// TestVendorGuides: each statement of a guide for a vendor says where it comes from, and each guide has every subject.
func TestVendorGuides(t *testing.T) {
	t.Parallel()
	source := regexp.MustCompile(`^(?:tried|unknown|V\d|read \[[^]]+\]\([^)]+\))$`)
	guides := 0
	for path, text := range documents(t) {
		if filepath.Dir(path) != filepath.Join(root, "docs/hsm") || filepath.Base(path) == "README.md" {
			continue
		}
		guides++
		table, _, _ := strings.Cut(text[strings.Index(text, "| subject |"):], "\n\n")
		rows := strings.Split(table, "\n")
		if len(rows) < 2 || rows[0] != "| subject | what is known | from |" {
			t.Fatalf("%s has no table of subjects: %q", path, rows[0])
		}
		for _, row := range rows[2:] {
			if strings.TrimSpace(row) == "" {
				continue
			}
			cells := strings.Split(strings.Trim(row, "| "), " | ")
			mark := cells[len(cells)-1]
			if len(cells) != 3 || !source.MatchString(mark) {
				t.Errorf("%s: this does not say where it comes from: %s", path, row)
			}
			if strings.HasPrefix(mark, "V") && !strings.Contains(text, "\n* "+mark+": [") {
				t.Errorf("%s names no document %s", path, mark)
			}
		}
		for _, subject := range subjects {
			if !strings.Contains(table, "| "+subject) && !strings.Contains(table, ": "+subject) && !strings.Contains(table, "`"+subject) {
				t.Errorf("%s says nothing of %q", path, subject)
			}
		}
	}
	if guides < 10 {
		t.Errorf("%d guides were found", guides)
	}
}
