package docs

import (
	"go/ast"
	"go/token"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// longestLine is where the prose of a document wraps; longestSentence is in words.
const (
	longestLine     = 120
	longestSentence = 45
)

// habit is a way of writing that makes readers stumble.
type habit struct {
	find   *regexp.Regexp
	better string
}

func habits(pairs ...string) []habit {
	var all []habit
	for i := 0; i < len(pairs); i += 2 {
		all = append(all, habit{regexp.MustCompile(pairs[i]), pairs[i+1]})
	}
	return all
}

// everywhere are words that are in no document, comment or text of the program.
func everywhere() []habit {
	return habits(
		`(?i)\banew\b`, "again",
		`(?i)\bwhoever\b`, "anyone who",
		`(?i)\bmend(s|ed|ing)?\b`, "fix, repair",
		`(?i)\bfor ever\b`, "without end, permanently",
		`(?i)\b(tell|tells|told) (us )?whether\b`, "report whether",
		`(?i)\bfurnish(es|ed|ing)?\b`, "set up",
		`(?i)\buntold\b`, "not reported",
		`(?i)\bnobody but\b`, "only",
		`(?i)\bgives? away\b`, "reveal",
		`(?i)\bmay not know\b`, "cannot know",
	)
}

// inDocuments are further ones for readers in a hurry.
func inDocuments() []habit {
	return habits(
		`\bwants\b`, "requires",
		`\bsays? of\b`, "reports about",
		`\b(is|are|was|were) told\b`, "is reported",
		`\bheals?\b`, "recovers",
		`\bof (ours|yours|theirs)\b`, "our, your, their",
		`\bhands? (it )?over\b`, "passes",
		`\b(go|goes|going) past\b`, "bypasses",
		`\bof no use\b`, "unusable",
		`\bsays so\b`, "reports that",
		`\btold apart\b`, "distinguished",
	)
}

// inTexts are those for texts that the program prints: a noun clause as the subject is read twice.
func inTexts() []habit {
	return habits(
		`^(whether|which|what|who|how|to which|under which)\b.*\b(is|are) (not clear|not known|unknown)\b`, "it is not clear whether ...",
		`\bsee (that|whether)\b`, "check that, check whether",
	)
}

// A sentence that begins with a noun clause, and is no question.
var nounClause = regexp.MustCompile(`^(What|Whatever|Who|Whether) [a-z]`)

// TestHabits holds the documents to the style that CONTRIBUTING.md asks for, as far as a program can see it.
func TestHabits(t *testing.T) {
	t.Parallel()
	for path, text := range documents(t) {
		for _, l := range linesOf(text) {
			if !l.Code && !l.Table && l.Length > longestLine && len(strings.Fields(l.Text)) > 2 { // a link or a command cannot be wrapped
				t.Errorf("%s:%d has %d characters: wrap it at %d", path, l.Number, l.Length, longestLine)
			}
			for _, h := range slices.Concat(everywhere(), inDocuments()) {
				if found := h.find.FindString(l.Text); found != "" {
					t.Errorf("%s:%d: %q: better: %s", path, l.Number, found, h.better)
				}
			}
		}
		for _, s := range sentencesOf(text) {
			checkSentence(t, path, s)
		}
	}
}

func checkSentence(t *testing.T, path string, s sentence) {
	t.Helper()
	if n := len(strings.Fields(s.Text)); n > longestSentence {
		t.Errorf("%s:%d: a sentence of %d words, more than %d: %s", path, s.Line, n, longestSentence, s.Text)
	}
	if nounClause.MatchString(s.Text) && !strings.HasSuffix(s.Text, "?") && !strings.HasSuffix(s.Text, ":") {
		t.Errorf("%s:%d: a noun clause is the subject: %s", path, s.Line, s.Text)
	}
	if strings.Count(s.Text, ";") > 1 && !strings.HasSuffix(s.Text, ";") {
		t.Errorf("%s:%d: more than two statements in a sentence: %s", path, s.Line, s.Text)
	}
}

// TestHabitsOfCode does the same with the comments and texts of the program.
func TestHabitsOfCode(t *testing.T) {
	t.Parallel()
	comments, texts := 0, 0
	sources, err := readSources(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sources {
		check := func(pos token.Pos, text string, list []habit) {
			for _, h := range list {
				if found := h.find.FindString(text); found != "" {
					t.Errorf("%s:%d: %q: better: %s", s.Path, s.Set.Position(pos).Line, found, h.better)
				}
			}
		}
		for _, group := range s.File.Comments {
			comments++
			check(group.Pos(), group.Text(), everywhere())
		}
		ast.Inspect(s.File, func(n ast.Node) bool {
			if literal, ok := n.(*ast.BasicLit); ok && literal.Kind == token.STRING {
				if text, err := strconv.Unquote(literal.Value); err == nil {
					texts++
					check(literal.Pos(), text, slices.Concat(everywhere(), inTexts()))
				}
			}
			return true
		})
	}
	if comments < 1000 || texts < 1000 {
		t.Errorf("only %d comments and %d texts were looked at", comments, texts)
	}
}

// easeFloor is the reading ease that every page has. 60 to 70 is plain English by the usual scale.
const easeFloor = 68

// TestReadingEase measures each page and reports it: go test ./test/docs -run TestReadingEase -v
func TestReadingEase(t *testing.T) {
	t.Parallel()
	all := documents(t)
	for _, path := range slices.Sorted(maps.Keys(all)) {
		ease, words := readingEase(all[path])
		name, err := filepath.Rel(root, path)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%5.1f  %5d words  %s", ease, words, name)
		if words > 100 && ease < easeFloor {
			t.Errorf("%s has a reading ease of %.1f, less than %d: write shorter sentences and shorter words", name, ease, easeFloor)
		}
	}
}

func TestSentences(t *testing.T) {
	t.Parallel()
	const text = "# A heading\n\nOne `code. span` is here. Two\nlines make it, e.g. this?\n\n* An item: with `x`\n* Another.\n\n| a | table. |\n\n```\nno. prose.\n```\n"
	var got []string
	for _, s := range sentencesOf(text) {
		got = append(got, s.Text)
	}
	want := []string{"One CODE is here.", "Two lines make it, eg this?", "An item: with CODE", "Another."}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	easy, _ := readingEase("The cat sat on the mat. It was a fine day.")
	hard, words := readingEase("Notwithstanding considerable methodological sophistication, heterogeneous implementations necessitate comprehensive interoperability verification.")
	if easy < 90 || hard > 10 || words != 10 {
		t.Errorf("easy %.0f, hard %.0f of %d words", easy, hard, words)
	}
}

// The checker finds what it is there for, and leaves what it should.
func TestHabitsAreFound(t *testing.T) {
	t.Parallel()
	found := func(text string, list []habit) bool {
		return slices.ContainsFunc(list, func(h habit) bool { return h.find.MatchString(text) })
	}
	for _, text := range []string{"read it anew", "Whoever has it", "mended", "lost for ever", "tells whether it works"} {
		if !found(text, everywhere()) {
			t.Errorf("not found: %s", text)
		}
	}
	for _, text := range []string{"recommended", "it reports whether", "lost for good"} {
		if found(text, everywhere()) {
			t.Errorf("found: %s", text)
		}
	}
	for text, bad := range map[string]bool{
		"whether it was made is unknown: %w": true, "which key is current is not clear": true, "it is not clear which key is current": false, "see that it runs": true,
	} {
		if found(text, inTexts()) != bad {
			t.Errorf("%q: %t", text, !bad)
		}
	}
	for text, bad := range map[string]bool{"What it does is good.": true, "What does it do?": false, "That is good.": false, "Who can log in is an admin.": true} {
		if (nounClause.MatchString(text) && !strings.HasSuffix(text, "?")) != bad {
			t.Errorf("%q: %t", text, !bad)
		}
	}
}
