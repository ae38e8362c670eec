package docs

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Names of fields, variables and the like are no words: they have a capital letter inside, an underscore, a digit or a path.
var notWords = regexp.MustCompile(`\S*[_/=@#\d\\]\S*|\b\w*[a-z][A-Z]\w*\b|\b[A-Z]{2,}\w*\b|--?\w[\w-]*|\w+\.\w[\w.]*`)

// TestSpelling: every word of the documents is in the dictionary of British English, or in words.txt, which has the words of
// the field. Words with a capital letter may be names, and are not looked up.
func TestSpelling(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("aspell"); err != nil {
		t.Skip("NOT TESTED: the spelling of the documents: aspell is not installed (Debian: apt-get install aspell aspell-en)")
	}
	list, err := os.ReadFile("words.txt")
	if err != nil {
		t.Fatal(err)
	}
	ours := strings.Fields(string(list))
	if !slices.IsSortedFunc(ours, func(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) }) {
		t.Error("words.txt is not sorted: sort -f")
	}
	where := map[string]string{}
	for path, text := range documents(t) {
		for _, l := range linesOf(text) {
			prose := strings.ReplaceAll(notWords.ReplaceAllString(l.Text, " "), "CODE", " ")
			for _, word := range wordsOf(prose) {
				if word = strings.TrimSuffix(strings.Trim(word, "'"), "'s"); len(word) > 2 && word == strings.ToLower(word) {
					where[word] = path
				}
			}
		}
	}
	if len(where) < 1000 {
		t.Fatalf("only %d words were found: the search is broken", len(where))
	}
	aspell := exec.CommandContext(t.Context(), "aspell", "list", "--lang=en_GB", "--encoding=utf-8")
	aspell.Stdin = strings.NewReader(strings.Join(slices.Sorted(maps.Keys(where)), "\n") + "\n")
	var complaint bytes.Buffer
	aspell.Stderr = &complaint
	out, err := aspell.Output()
	if err != nil {
		t.Skipf("NOT TESTED: the spelling of the documents: %v: %s (Debian: apt-get install aspell-en)", err, complaint.String())
	}
	for _, word := range strings.Fields(string(out)) {
		if !slices.ContainsFunc(ours, func(known string) bool { return strings.EqualFold(known, word) }) {
			t.Errorf("%s: is %q spelt right? If so, it belongs in test/docs/words.txt", where[word], word)
		}
	}
}
