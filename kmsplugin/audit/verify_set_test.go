package audit

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// set writes a trail of more than five files and returns their lines in the order of the chain.
func set(t *testing.T) [][]string {
	t.Helper()
	path := trail(t)
	w := open(t, path, func(o *Options) { o.MaxBytes = 2 << 10 })
	record(t, w, 1, 30)
	closeIt(t, w)
	paths := filesOf(t, path)
	paths = append(paths[1:], paths[0]) // audit.log itself is the last
	if len(paths) <= 5 {
		t.Fatalf("only %d files", len(paths))
	}
	var files [][]string
	for _, p := range paths {
		files = append(files, readLines(t, p))
	}
	return files
}

// Over a set of files, given in any order, every change shows, in the file and at the line where it is.
func TestVerifyFindsInASet(t *testing.T) {
	t.Parallel()
	last := func(files [][]string) int { return len(files) - 1 }
	for name, tc := range map[string]struct {
		change func(files [][]string) [][]string
		file   int // index of the one that is named; -1: nothing is found
		line   int
	}{
		"nothing":         {func(f [][]string) [][]string { return f }, -1, 0},
		"changed":         {func(f [][]string) [][]string { f[2][1] = strings.Replace(f[2][1], `"OK"`, `"OL"`, 1); return f }, 2, 2},
		"removed":         {func(f [][]string) [][]string { f[2] = slices.Delete(f[2], 1, 2); return f }, 2, 2},
		"added":           {func(f [][]string) [][]string { f[2] = slices.Insert(f[2], 1, f[2][1]); return f }, 2, 3},
		"in other order":  {func(f [][]string) [][]string { f[2] = swapped(f[2], 1, 2); return f }, 2, 2},
		"in another file": {func(f [][]string) [][]string { f[3][1], f[2][1] = f[2][1], f[3][1]; return f }, 2, 2},
		"moved over": {func(f [][]string) [][]string {
			f[3] = slices.Insert(f[3], 1, f[2][1])
			f[2] = slices.Delete(f[2], 1, 2)
			return f
		}, 2, 2},
		"cut off between": {func(f [][]string) [][]string { f[2] = f[2][:2]; return f }, 3, 1},
		"cut in a record": {func(f [][]string) [][]string { f[2][2] = f[2][2][:50]; f[2] = f[2][:3]; return f }, 2, 3},
		"cut at the end":  {func(f [][]string) [][]string { n := last(f); f[n] = f[n][:1]; return f }, 4, 2},
		"a file removed":  {func(f [][]string) [][]string { return slices.Delete(f, 2, 3) }, 2, 1},
		"a file twice":    {func(f [][]string) [][]string { return slices.Insert(f, 2, f[2]) }, 2, 1},
		"a file emptied":  {func(f [][]string) [][]string { f[2] = nil; return f }, 3, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			files := set(t)[:5]
			dir := t.TempDir()
			var paths []string
			for i, lines := range tc.change(files) {
				path := filepath.Join(dir, string('a'+rune(i)))
				if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
					t.Fatal(err)
				}
				paths = append(paths, path)
			}
			given := slices.Clone(paths)
			slices.Reverse(given)
			r := verify(t, given...)
			if tc.file < 0 {
				wantOK(t, r)
				return
			}
			if r.OK || r.File != paths[tc.file] || *r.FirstBad != tc.line {
				t.Errorf("want %s line %d: %s", paths[tc.file], tc.line, show(r))
			}
		})
	}
}

// A set cannot show by itself that older files are missing, or the newest. Both are reported.
func TestVerifyTellsWhatWasNotGiven(t *testing.T) {
	t.Parallel()
	files := set(t)
	dir := t.TempDir()
	var paths []string
	for i, lines := range files[1 : len(files)-1] {
		path := filepath.Join(dir, string('a'+rune(i)))
		if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	if r := verify(t, paths...); !r.OK || r.FirstSequence < 2 || r.End != EndRotated {
		t.Error(show(r))
	}
}
