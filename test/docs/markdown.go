// Package docs holds the documents to what they say: commands marked as tested run and print what is promised, and links
// lead somewhere. CONTRIBUTING.md tells writers how to mark a block. It reads Markdown and runs what is in it.
package docs

import (
	"fmt"
	"regexp"
	"strings"
)

// mark stands on the line before a block of commands that is to be run.
const mark = "<!-- tested -->"

// promise begins, in a line of such a block, what the commands up to there have printed.
const promise = "#=>"

// script is all marked blocks of one document, to be run in order in one shell.
type script struct {
	Lines    []string
	Promises []string // text that is printed, in this order
}

// scriptOf reads the marked blocks. A mark with no block of sh after it is an error: it would be a test that tests nothing.
func scriptOf(markdown string) (script, error) {
	var s script
	lines := strings.Split(markdown, "\n")
	for i := 0; i < len(lines); i++ {
		if strings.TrimSpace(lines[i]) != mark {
			continue
		}
		if i++; i >= len(lines) || lines[i] != "```sh" {
			return script{}, fmt.Errorf("line %d: %s is not followed by a block of sh", i, mark)
		}
		begin := i + 1
		for i = begin; i < len(lines) && lines[i] != "```"; i++ {
			s.add(lines[i])
		}
		if i == len(lines) {
			return script{}, fmt.Errorf("line %d: the block has no end", begin)
		}
	}
	return s, nil
}

// add takes a line. What make does is the rest of the tests' affair: its lines are not run here.
func (s *script) add(line string) {
	command, promised, found := strings.Cut(line, promise)
	if found {
		s.Promises = append(s.Promises, strings.TrimSpace(promised))
	}
	if !strings.HasPrefix(command, "make ") {
		s.Lines = append(s.Lines, command)
	}
}

// kept checks the promises against what was printed.
func (s *script) kept(output string) error {
	rest := output
	for _, p := range s.Promises {
		at := strings.Index(rest, p)
		if at < 0 {
			return fmt.Errorf("%q is not printed, or not after what is promised before it", p)
		}
		rest = rest[at+len(p):]
	}
	return nil
}

var (
	codeBlock  = regexp.MustCompile("(?ms)^```.*?^```$")
	codeSpan   = regexp.MustCompile("`[^`\n]*`")
	inlineLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading    = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	notInSlug  = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// linksOf gives the targets of the links in a document.
func linksOf(markdown string) []string {
	text := codeSpan.ReplaceAllString(codeBlock.ReplaceAllString(markdown, ""), "")
	var targets []string
	for _, match := range inlineLink.FindAllStringSubmatch(text, -1) {
		targets = append(targets, match[1])
	}
	return targets
}

// anchorsOf gives the anchors of a document's headings, as GitHub makes them.
func anchorsOf(markdown string) map[string]bool {
	anchors := map[string]bool{}
	for _, match := range heading.FindAllStringSubmatch(codeBlock.ReplaceAllString(markdown, ""), -1) {
		slug := notInSlug.ReplaceAllString(strings.ToLower(match[1]), "")
		anchors[strings.ReplaceAll(slug, " ", "-")] = true
	}
	return anchors
}
