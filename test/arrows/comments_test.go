package arrows

import (
	"go/parser"
	"go/token"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

var (
	dependsOn  = regexp.MustCompile(`(?s)\bIt\s+depends\s+on\s+(.*?)\.(?:\s|$)`)
	pathOrWord = regexp.MustCompile(`[\w./-]+`)
)

// TestDependsOn compares what package comments say after "It depends on" with the imports. The sentence names each package of
// this module that is imported, by the last element of its path, and no other.
func TestDependsOn(t *testing.T) {
	t.Parallel()
	packages := list(t, "CGO_ENABLED=1")
	delete(packages, "cmd/hsm-kms")
	var names []string
	for name := range packages {
		if within(name, "test") {
			delete(packages, name)
			continue
		}
		names = append(names, path.Base(name))
	}
	for name, p := range packages {
		sentence := dependsOn.FindStringSubmatch(packageComment(t, name, p))
		if sentence == nil {
			t.Errorf(`%s: the package comment has no sentence that begins with "It depends on"`, name)
			continue
		}
		var said, imported []string
		for _, word := range pathOrWord.FindAllString(sentence[1], -1) {
			if base := path.Base(word); slices.Contains(names, base) {
				said = append(said, base)
			}
		}
		for _, dep := range p.Imports {
			if within(dep, module) {
				imported = append(imported, path.Base(dep))
			}
		}
		slices.Sort(said)
		slices.Sort(imported)
		if said = slices.Compact(said); !slices.Equal(said, imported) {
			t.Errorf("%s imports %v; the package comment says %v", name, imported, said)
		}
	}
}

func packageComment(t *testing.T, folder string, p listed) string {
	t.Helper()
	text := ""
	for _, name := range slices.Concat(p.GoFiles, p.CgoFiles) {
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join("../..", folder, name), nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		text += file.Doc.Text()
	}
	return text
}
