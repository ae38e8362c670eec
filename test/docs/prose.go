package docs

import (
	"regexp"
	"strings"
	"unicode"
)

// line is one line of a document as a reader sees it: without code, comments of HTML, and the targets of links.
type line struct {
	Number int
	Text   string
	Table  bool // a row of a table
	Code   bool // inside a block of code, indented code, a comment or a reference: no prose
	Length int  // of the line as it is in the file, in runes
}

var (
	linkTarget = regexp.MustCompile(`\]\([^)]*\)`)
	shortTag   = regexp.MustCompile(`<!--.*?-->|<br>`)
	reference  = regexp.MustCompile(`^\[[^\]]+\]: `)
)

// linesOf reads a document. A code span becomes the word CODE, so that the sentence around it stays whole.
func linesOf(markdown string) []line {
	var lines []line
	fence := false
	for i, raw := range strings.Split(markdown, "\n") {
		trimmed := strings.TrimSpace(raw)
		l := line{Number: i + 1, Length: len([]rune(raw))}
		switch {
		case strings.HasPrefix(trimmed, "```"):
			fence = !fence
			l.Code = true
		case fence, strings.HasPrefix(raw, "    ") && !strings.HasPrefix(trimmed, "* ") && !strings.HasPrefix(trimmed, "- "),
			strings.HasPrefix(trimmed, "<!--"), reference.MatchString(raw):
			l.Code = true
		default:
			l.Table = strings.HasPrefix(trimmed, "|")
			text := codeSpan.ReplaceAllString(raw, "CODE")
			l.Text = shortTag.ReplaceAllString(linkTarget.ReplaceAllString(text, "]"), " ")
		}
		lines = append(lines, l)
	}
	return lines
}

// sentence is one of running text. Cells of tables and headings are none.
type sentence struct {
	Line int // where its paragraph begins
	Text string
}

var (
	itemMark    = regexp.MustCompile(`^\s*(?:[-*]|\d+\.|>) +`)
	ornaments   = strings.NewReplacer("**", "", "*", "", "[", "", "]", "", "|", " ")
	sentenceEnd = regexp.MustCompile(`[.!?](?:["')]*)(?: |$)|:(?: *)$`)
	shortened   = strings.NewReplacer("e.g.", "eg", "i.e.", "ie", "etc.", "etc", "vs.", "vs")
)

// sentencesOf gives the sentences of a document's paragraphs and list items.
func sentencesOf(markdown string) []sentence {
	var all []sentence
	var paragraph []string
	begin := 0
	flush := func() {
		text := shortened.Replace(ornaments.Replace(strings.Join(paragraph, " ")))
		paragraph = nil
		for text = strings.TrimSpace(text); text != ""; text = strings.TrimSpace(text) {
			end := len(text)
			if at := sentenceEnd.FindStringIndex(text); at != nil {
				end = at[1]
			}
			all = append(all, sentence{begin, strings.TrimSpace(text[:end])})
			text = text[end:]
		}
	}
	for _, l := range linesOf(markdown) {
		if l.Code || l.Table || strings.TrimSpace(l.Text) == "" || strings.HasPrefix(l.Text, "#") {
			flush()
			continue
		}
		if itemMark.MatchString(l.Text) {
			flush()
		}
		if len(paragraph) == 0 {
			begin = l.Number
		}
		paragraph = append(paragraph, strings.TrimSpace(itemMark.ReplaceAllString(l.Text, "")))
	}
	flush()
	return all
}

// wordsOf gives the words of a sentence: whatever has a letter in it.
func wordsOf(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool {
		return !unicode.IsLetter(r) && r != '\'' && r != '_'
	})
}

// readingEase is the Flesch reading ease of the document's sentences: 206.835 - 1.015 words/sentences - 84.6 syllables/words
// (R. Flesch, A new readability yardstick, 1948). 60 and more is plain English, below 30 is for specialists. The second result
// is the number of words that it rests on.
func readingEase(markdown string) (float64, int) {
	sentences, words, syllables := 0, 0, 0
	for _, s := range sentencesOf(markdown) {
		found := wordsOf(s.Text)
		if len(found) == 0 {
			continue
		}
		sentences++
		words += len(found)
		for _, w := range found {
			syllables += syllablesOf(w)
		}
	}
	if words == 0 {
		return 100, 0
	}
	return 206.835 - 1.015*float64(words)/float64(sentences) - 84.6*float64(syllables)/float64(words), words
}

var vowels = regexp.MustCompile(`[aeiouy]+`)

// syllablesOf counts by groups of vowels: an estimate that is the same for every page.
func syllablesOf(word string) int {
	if word == "CODE" || word == strings.ToUpper(word) {
		return 1 // a name: what it costs to read does not depend on the page
	}
	w := strings.ToLower(word)
	n := len(vowels.FindAllString(w, -1))
	if strings.HasSuffix(w, "e") && !strings.HasSuffix(w, "le") || strings.HasSuffix(w, "ed") && !strings.HasSuffix(w, "ted") && !strings.HasSuffix(w, "ded") {
		n--
	}
	return max(n, 1)
}
