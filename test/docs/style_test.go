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

// habits are ways of writing that make readers stumble, in whole words and any case, each followed by what is better.
type habits []string

// finder gives the first habit in a text, and what is better; "" if there is none. An expression runs only where the letters
// that it begins with are: over all texts of the program, and with the race detector, that is what makes it quick.
func (h habits) finder() func(text string) (found, better string) {
	var begins []string
	var find []*regexp.Regexp
	for i := 0; i < len(h); i += 2 {
		begin, _ := regexp.MustCompile(h[i]).LiteralPrefix()
		begins = append(begins, begin)
		find = append(find, regexp.MustCompile(`(?i)\b(?:`+h[i]+`)\b`))
	}
	return func(text string) (string, string) {
		lower := strings.ToLower(text)
		for i, begin := range begins {
			if !strings.Contains(lower, begin) {
				continue
			}
			if found := find[i].FindString(text); found != "" {
				return found, h[2*i+1]
			}
		}
		return "", ""
	}
}

// everywhere are words that are in no document, comment or text of the program.
func everywhere() habits {
	return habits{
		`anew`, "again",
		`whoever`, "anyone who",
		`mend(s|ed|ing)?`, "fix, repair",
		`for ever`, "without end, permanently",
		`tells? (us )?whether`, "report whether",
		`told (us )?whether`, "reported whether",
		`furnish(es|ed|ing)?`, "set up",
		`untold`, "not reported",
		`nobody but`, "only",
		`gives? away`, "reveal",
		`may not know`, "cannot know",
	}
}

// inDocuments are further ones for readers in a hurry.
func inDocuments() habits {
	return habits{
		`wants`, "requires",
		`says? of`, "reports about",
		`is told`, "is reported",
		`are told`, "are reported",
		`was told`, "was reported",
		`were told`, "were reported",
		`heals?`, "recovers",
		`of (ours|yours|theirs)`, "our, your, their",
		`hands? (it )?over`, "passes",
		`go(es|ing)? past`, "bypasses",
		`of no use`, "unusable",
		`says so`, "reports that",
		`told apart`, "distinguished",
	}
}

// inTexts are those for texts that the program prints: a noun clause as the subject is read twice.
func inTexts() habits {
	return habits{
		`^(whether|which|what|who|how|to which|under which)\b.*\b(is|are) (not clear|not known|unknown)`, "it is not clear whether ...",
		`see (that|whether)`, "check that, check whether",
	}
}

// A sentence that begins with a noun clause, and is no question.
var nounClause = regexp.MustCompile(`^(What|Whatever|Who|Whether) [a-z]`)

// TestHabits holds the documents to the style that CONTRIBUTING.md asks for, as far as a program can see it.
func TestHabits(t *testing.T) {
	t.Parallel()
	find := slices.Concat(everywhere(), inDocuments()).finder()
	for path, text := range documents(t) {
		for _, l := range linesOf(text) {
			if !l.Code && !l.Table && l.Length > longestLine && len(strings.Fields(l.Text)) > 2 { // a link or a command cannot be wrapped
				t.Errorf("%s:%d has %d characters: wrap it at %d", path, l.Number, l.Length, longestLine)
			}
			if found, better := find(l.Text); found != "" {
				t.Errorf("%s:%d: %q: better: %s", path, l.Number, found, better)
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
	inComment, inLiteral := everywhere().finder(), slices.Concat(everywhere(), inTexts()).finder()
	sources := sourcesOf(t)
	for _, s := range sources {
		check := func(pos token.Pos, text string, find func(string) (string, string)) {
			if found, better := find(text); found != "" {
				t.Errorf("%s:%d: %q: better: %s", s.Path, s.Set.Position(pos).Line, found, better)
			}
		}
		for _, group := range s.File.Comments {
			comments++
			check(group.Pos(), group.Text(), inComment)
		}
		ast.Inspect(s.File, func(n ast.Node) bool {
			if literal, ok := n.(*ast.BasicLit); ok && literal.Kind == token.STRING {
				if text, err := strconv.Unquote(literal.Value); err == nil {
					texts++
					check(literal.Pos(), text, inLiteral)
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
	found := func(text string, list habits) bool {
		found, _ := list.finder()(text)
		return found != ""
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
