package docs

import (
	"flag"
	"fmt"
	"go/ast"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/messages.md")

// areas are the headings of docs/messages.md; the first whose folder or file is a prefix of a path has its messages.
var areas = []struct {
	heading string
	paths   []string
}{
	{"The configuration", []string{"cmd/hsm-kms/internal/config"}},
	{"doctor", []string{"cmd/hsm-kms/internal/doctor", "cmd/hsm-kms/doctor"}},
	{"The keys commands", []string{"cmd/hsm-kms/internal/keyops", "cmd/hsm-kms/internal/retire", "cmd/hsm-kms/keys", "evidence/gate"}},
	{"The etcd commands", []string{"cmd/hsm-kms/etcd", "cmd/hsm-kms/internal/sources", "cmd/hsm-kms/internal/breakglass", "evidence"}},
	{"manifests", []string{"cmd/hsm-kms/manifests", "manifests"}},
	{"The HSM", []string{"hsm", "envelope"}},
	{"The plugin, its socket and its audit trail", []string{"kmsplugin", "cmd/hsm-kms/internal/daemon"}},
	{"Files and everything else", []string{""}},
}

// arguments says which arguments of a call are a message and its advice, for the calls that have both.
func arguments(path string, call *ast.CallExpr) (message, advice int, ok bool) {
	method := methodName(call)
	switch {
	case calledName(call) == "hint.Wrap":
		return 0, 1, true
	case strings.HasPrefix(path, "cmd/hsm-kms/internal/doctor") && (method == "fail" || method == "warn" || method == "failure"):
		return 2, 3, true
	case strings.HasPrefix(path, "cmd/hsm-kms/internal/config") && method == "report":
		return 1, 2, true
	case strings.HasPrefix(path, "cmd/hsm-kms/internal/config") && method == "reportAt":
		return 2, 3, true
	case strings.HasPrefix(path, "evidence/gate") && method == "against":
		return 1, 0, true
	}
	return 0, 0, false
}

// messages are all pairs of a message and its advice, by heading and message.
func messages(t *testing.T) map[string]map[string][]string {
	t.Helper()
	sources := sourcesOf(t)
	known := constantsOf(sources)
	found := map[string]map[string][]string{}
	for _, s := range sources {
		area := areas[slices.IndexFunc(areas, func(a struct {
			heading string
			paths   []string
		}) bool {
			return slices.ContainsFunc(a.paths, func(p string) bool { return strings.HasPrefix(s.Path, p) })
		})].heading
		ast.Inspect(s.File, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			m, a, ok := arguments(s.Path, call)
			if !ok || len(call.Args) <= max(m, a) {
				return true
			}
			message, advice := cell(known.text(s.File.Name.Name, call.Args[m])), cell(known.text(s.File.Name.Name, call.Args[a]))
			if strings.Trim(message, unknownPart+" :,%sw") == "" || strings.Trim(advice, unknownPart+" :,") == "" {
				return true
			}
			if found[area] == nil {
				found[area] = map[string][]string{}
			}
			if !slices.Contains(found[area][message], advice) {
				found[area][message] = append(found[area][message], advice)
			}
			return true
		})
	}
	return found
}

// cell makes a text fit for a table.
func cell(text string) string {
	text = verb.ReplaceAllString(text, unknownPart)
	text = repeats.ReplaceAllString(text, unknownPart)
	return strings.Join(strings.Fields(strings.NewReplacer("|", `\|`, "`", "'", "<", "&lt;").Replace(text)), " ")
}

// TestMessages: docs/messages.md is what the program says now. Write it again with: go test ./test/docs -run TestMessages -update
func TestMessages(t *testing.T) {
	t.Parallel()
	var page strings.Builder
	page.WriteString(`# Messages and hints

This page is generated from the program: ` + "`go test ./test/docs -run TestMessages -update`" + `.
It has the errors of commands, the findings of ` + "`doctor`" + ` and the refusals, each with the hint
that is printed beside it. ` + "`…`" + ` stands for a value.

[Troubleshooting](troubleshooting.md) has the words of Status, the messages of the log, and the checks of ` + "`doctor`" + `.
`)
	found := messages(t)
	rows := 0
	for _, area := range areas {
		fmt.Fprintf(&page, "\n## %s\n\n| message | what to do |\n|---|---|\n", area.heading)
		for _, message := range slices.Sorted(maps.Keys(found[area.heading])) {
			rows++
			fmt.Fprintf(&page, "| %s | %s |\n", message, strings.Join(slices.Sorted(slices.Values(found[area.heading][message])), "<br>"))
		}
	}
	if rows < 250 {
		t.Errorf("only %d messages were found: the search is broken", rows)
	}
	path := filepath.Join(root, "docs/messages.md")
	if *update {
		if err := os.WriteFile(path, []byte(page.String()), 0o644); err != nil { //nolint:gosec // a document
			t.Fatal(err)
		}
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != page.String() {
		t.Errorf("docs/messages.md is not what the program says now (%v): run go test ./test/docs -run TestMessages -update", err)
	}
}

// section gives the rows of the table below a heading of docs/troubleshooting.md: the first cell, and the rest.
func section(t *testing.T, heading string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs/troubleshooting.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, below, found := strings.Cut(string(text), "\n## "+heading+"\n")
	below, _, _ = strings.Cut(below, "\n## ")
	rows := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|(.*)$").FindAllStringSubmatch(below, -1) {
		rows[row[1]] = row[2]
	}
	if !found || len(rows) == 0 {
		t.Fatalf("docs/troubleshooting.md has no table below %q", heading)
	}
	return rows
}

func compare(t *testing.T, what string, program map[string]string, page map[string]string) {
	t.Helper()
	for _, text := range slices.Sorted(maps.Keys(program)) {
		if _, ok := page[text]; !ok {
			t.Errorf("docs/troubleshooting.md has no row for the %s %q (%s)", what, text, program[text])
		}
	}
	for _, text := range slices.Sorted(maps.Keys(page)) {
		if _, ok := program[text]; !ok {
			t.Errorf("docs/troubleshooting.md has a row for the %s %q, which is not in the program", what, text)
		}
	}
}

// TestStatusWords: docs/troubleshooting.md has a row for all fixed words of an answer, with the code, and whether writes stop.
func TestStatusWords(t *testing.T) {
	t.Parallel()
	sources, err := readSources(filepath.Join(root, "kmsplugin/problem"))
	if err != nil {
		t.Fatal(err)
	}
	program, rows := map[string]string{}, section(t, "What Status says")
	for _, s := range sources {
		ast.Inspect(s.File, func(n ast.Node) bool {
			class, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			fields := map[string]ast.Expr{}
			for _, element := range class.Elts {
				if pair, ok := element.(*ast.KeyValueExpr); ok {
					if name, ok := pair.Key.(*ast.Ident); ok {
						fields[name.Name] = pair.Value
					}
				}
			}
			if fields["Words"] == nil {
				return true
			}
			words, code := constants{}.text("", fields["Words"]), fields["Code"].(*ast.SelectorExpr).Sel.Name
			program[words] = s.Path
			row := rows[words]
			if !strings.HasPrefix(row, " "+code+" |") || strings.Contains(row, "| stop |") != (fields["Stops"] != nil) {
				t.Errorf("the row of %q does not say %s, or does not say right whether writes stop: %s", words, code, row)
			}
			return true
		})
	}
	compare(t, "words", program, rows)
}

// TestLogMessages: docs/troubleshooting.md has a row for each warning and error that serve logs.
func TestLogMessages(t *testing.T) {
	t.Parallel()
	sources := sourcesOf(t)
	known, program := constantsOf(sources), map[string]string{}
	for _, s := range sources {
		ast.Inspect(s.File, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			at := map[string]int{"Warn": 0, "Error": 0, "WarnContext": 1, "ErrorContext": 1, "Log": 2}
			index, ok := at[methodName(call)]
			if _, selected := call.Fun.(*ast.SelectorExpr); !ok || !selected || len(call.Args) <= index || calledName(call) == "status.Error" {
				return true
			}
			if _, computed := call.Args[index].(*ast.CallExpr); computed { // a command's warning, which is an error
				return true
			}
			if message := known.text(s.File.Name.Name, call.Args[index]); message != unknownPart {
				program[message] = s.Path
			}
			return true
		})
	}
	delete(program, "connected to the token") // at level info
	compare(t, "message", program, section(t, "Log messages"))
}

// TestDoctorChecks: docs/troubleshooting.md has a row for each check of doctor.
func TestDoctorChecks(t *testing.T) {
	t.Parallel()
	sources, err := readSources(filepath.Join(root, "cmd/hsm-kms/internal/doctor"))
	if err != nil {
		t.Fatal(err)
	}
	program := map[string]string{}
	for _, s := range sources {
		ast.Inspect(s.File, func(n ast.Node) bool {
			switch node := n.(type) {
			case *ast.ValueSpec: // const check = "module"
				for i, name := range node.Names {
					if name.Name == "check" && i < len(node.Values) {
						program[constants{}.text("", node.Values[i])] = s.Path
					}
				}
			case *ast.CallExpr:
				if slices.Contains([]string{"pass", "warn", "fail", "failure"}, methodName(node)) && len(node.Args) > 0 {
					if name := (constants{}).text("", node.Args[0]); name != unknownPart {
						program[name] = s.Path
					}
				}
			}
			return true
		})
	}
	compare(t, "check", program, section(t, "Checks of doctor"))
}
