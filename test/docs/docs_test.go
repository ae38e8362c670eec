package docs

import (
	"context"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

const root = "../.."

// modulePath is where the documents say that SoftHSM is; other systems have it elsewhere.
const modulePath = "/usr/lib/softhsm/libsofthsm2.so"

// patience is for one document's commands, on a slow machine.
const patience = 2 * time.Minute

// parsed are the sources of the program, which several tests look at.
var parsed = sync.OnceValues(func() ([]source, error) { return readSources(root) })

func sourcesOf(t *testing.T) []source {
	t.Helper()
	sources, err := parsed()
	if err != nil {
		t.Fatal(err)
	}
	return sources
}

// documents are all Markdown files of the repository, by path, and their text.
func documents(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (strings.HasPrefix(entry.Name(), ".git") || slices.Contains([]string{"bin", "dist", "testdata"}, entry.Name())):
			return filepath.SkipDir
		case entry.IsDir() || filepath.Ext(path) != ".md":
			return nil
		}
		text, err := os.ReadFile(path)
		all[path] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, must := range []string{"README.md", "FORMAT.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"} {
		if all[filepath.Join(root, must)] == "" {
			t.Errorf("there is no %s", must)
		}
	}
	return all
}

// TestLinks: every link to a file or heading of the repository leads there.
func TestLinks(t *testing.T) {
	t.Parallel()
	all, anchors := documents(t), map[string]map[string]bool{}
	for path, text := range all {
		anchors[path] = anchorsOf(text)
	}
	links := 0
	for path, text := range all {
		for _, link := range linksOf(text) {
			target, err := url.Parse(link)
			if err != nil || target.IsAbs() {
				if err != nil || target.Scheme != "https" {
					t.Errorf("%s: %s is no https link", path, link)
				}
				continue
			}
			links++
			file := path
			if target.Path != "" {
				file = filepath.Join(filepath.Dir(path), target.Path)
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s: the link to %s leads nowhere: %v", path, link, err)
			} else if target.Fragment != "" && !anchors[file][target.Fragment] {
				t.Errorf("%s: %s has no heading for %s", path, file, link)
			}
		}
	}
	if links == 0 {
		t.Error("not one link was found: the search is broken")
	}
}

// TestDiagrams: a semicolon ends a statement in a sequence diagram of Mermaid, also within the words of a message. What
// follows it is then no statement, and GitHub shows an error in the place of the diagram.
func TestDiagrams(t *testing.T) {
	t.Parallel()
	diagrams := 0
	for path, text := range documents(t) {
		for _, after := range strings.Split(text, "```mermaid\n")[1:] {
			diagram, _, closed := strings.Cut(after, "\n```")
			diagrams++
			if !closed {
				t.Errorf("%s: a diagram has no end", path)
			}
			if strings.HasPrefix(diagram, "sequenceDiagram") && strings.ContainsAny(diagram, ";#") {
				t.Errorf("%s: a sequence diagram has a semicolon or #:\n%s", path, diagram)
			}
		}
	}
	if diagrams == 0 {
		t.Error("no document has a diagram: the search is broken")
	}
}

// TestCommands runs the marked commands of every document. What they make in the folder of the source is nothing that git would
// take for a part of it.
func TestCommands(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	bin := program(t)
	tested := 0
	for path, text := range documents(t) {
		s, err := scriptOf(text)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if len(s.Lines) == 0 {
			continue
		}
		tested++
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			output := run(t, bin, s)
			if err := s.kept(output); err != nil {
				t.Errorf("%v\nprinted was:\n%s", err, output)
			}
		})
	}
	if tested == 0 {
		t.Error("no document has a tested block: the search is broken")
	}
}

// program builds hsm-kms once. It looks at every source file first: go test keeps a result until a file that the test
// itself looked at changes, and what go build looks at does not count.
func program(t *testing.T) string {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if ext := filepath.Ext(path); err == nil && (ext == ".go" || ext == ".c" || ext == ".h") {
			_, err = os.Stat(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "hsm-kms")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "./cmd/hsm-kms")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building hsm-kms: %v: %s", err, out)
	}
	return bin
}

// run runs the script in an empty folder in which `make build` has been done, and gives what it printed.
func run(t *testing.T, bin string, s script) string {
	t.Helper()
	module, err := softhsm.Module()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "docs-") // short: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "bin"), 0o700), os.Symlink(bin, filepath.Join(dir, "bin/hsm-kms"))); err != nil {
		t.Fatal(err)
	}
	defer checkUntracked(t, dir)
	// Processes that are left in the background end with the shell, as with a closed terminal.
	text := "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n" + strings.ReplaceAll(strings.Join(s.Lines, "\n"), modulePath, module) + "\n"
	log := filepath.Join(t.TempDir(), "output")
	shell, err := proc.Start(proc.Spec{
		Name: "bash", Path: "bash", Args: []string{"-c", text}, Dir: dir, Log: log,
		Env: []string{"HOME=" + dir, "SOFTHSM2_CONF=/nonexistent/no-token-of-this-machine.conf"},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	select {
	case <-shell.Done():
		if err := shell.Err(); err != nil {
			t.Errorf("the commands fail: %v", err)
		}
	case <-ctx.Done():
		shell.Kill()
		t.Errorf("the commands do not end within %s", patience)
	}
	printed, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	return string(printed)
}

// checkUntracked fails the test when dir holds a file that the repository's .gitignore does not name.
func checkUntracked(t *testing.T, dir string) {
	t.Helper()
	ignore, err := filepath.Abs(filepath.Join(root, ".gitignore"))
	if err != nil {
		t.Fatal(err)
	}
	git := func(args ...string) string {
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-C", dir, "-c", "core.excludesFile=" + ignore}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	git("init", "--quiet")
	if left := git("status", "--porcelain", "--untracked-files=all"); left != "" {
		t.Errorf("the commands leave files behind that git does not ignore:\n%s", left)
	}
}
