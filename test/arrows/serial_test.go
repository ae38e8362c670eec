package arrows

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSerial: what make unit tests without the race detector starts no goroutine and no server, neither in the package nor in
// its tests.
func TestSerial(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^SERIAL +:= ((?:.*\\\n)*.*)$`).FindSubmatch(text)
	if found == nil {
		t.Fatal("the Makefile has no SERIAL")
	}
	for _, folder := range strings.Fields(strings.ReplaceAll(string(found[1]), `\`, "")) {
		tests := 0
		paths, err := filepath.Glob(filepath.Join("../..", folder, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if strings.HasSuffix(path, "_test.go") {
				tests++
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if what := concurrent(t, text); what != "" {
				t.Errorf("%s %s: take the package out of SERIAL in the Makefile", path, what)
			}
		}
		if tests == 0 {
			t.Errorf("%s, of SERIAL in the Makefile, has no tests", folder)
		}
	}
}

// concurrent says by what the text of a file starts goroutines; "" if it does not.
func concurrent(t *testing.T, text []byte) (what string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "", text, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			what = "starts a goroutine"
		case *ast.SelectorExpr:
			if n.Sel.Name == "Go" {
				what = "starts a goroutine with Go"
			}
		case *ast.ImportSpec:
			if n.Path.Value == `"net/http/httptest"` || n.Path.Value == `"`+module+`/internal/load"` {
				what = "imports " + n.Path.Value
			}
		}
		return true
	})
	return what
}

func TestConcurrent(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"func f() { g() }":             "",
		"func f() { go g() }":          "starts a goroutine",
		"func f() { wg.Go(g) }":        "starts a goroutine with Go",
		"import \"net/http/httptest\"": "imports \"net/http/httptest\"",
	} {
		if got := concurrent(t, []byte("package p\n"+text)); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}
