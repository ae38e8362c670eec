package config

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// Problem is one mistake in a configuration file.
type Problem struct {
	File  string
	Line  int    // from 1; 0 when it is the file as a whole
	Field string // as tokens[0].pinFile; "" when it is no field's
	What  string
	Hint  string
}

// Error gives `file:line: field: what (hint: ...)`.
func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	if p.Field != "" {
		b.WriteString(": " + p.Field)
	}
	fmt.Fprintf(&b, ": %s (hint: %s)", p.What, p.Hint)
	return b.String()
}

// maxProblems is how many mistakes of a file are told. A file of another kind altogether would give thousands.
const maxProblems = 50

// problems collects the mistakes of one file.
type problems struct {
	file  string
	lines map[string]int // field -> line of its name, or of the item of a list
	found []*Problem
}

// report notes a mistake in field. The line is that of the field, or, when the file does not have the field, of what
// should hold it. Of several mistakes in one field only the first is kept: the later ones follow from it.
func (p *problems) report(field, what, advice string) {
	if slices.ContainsFunc(p.found, func(q *Problem) bool { return q.Field == field }) {
		return
	}
	p.reportAt(p.lineOf(field), field, what, advice)
}

func (p *problems) reportAt(line int, field, what, advice string) {
	switch len(p.found) {
	case maxProblems:
		line, field, what, advice = 0, "", fmt.Sprintf("has more mistakes than these %d", maxProblems), "correct these first"
	case maxProblems + 1:
		return
	}
	p.found = append(p.found, &Problem{File: p.file, Line: line, Field: field, What: what, Hint: advice})
}

var yamlLine = regexp.MustCompile(`(?s)^(?:yaml: )?(?:line (\d+): )?(.*)$`)

// reportYAML notes an error of the YAML library. The line is in its text, or nowhere. For some errors it is one too low.
func (p *problems) reportYAML(err error) {
	texts := []string{err.Error()}
	if typeError, ok := errors.AsType[*yaml.TypeError](err); ok {
		texts = typeError.Errors
	}
	for _, text := range texts {
		m := yamlLine.FindStringSubmatch(text)
		line, _ := strconv.Atoi(m[1]) // no digits: 0, the file as a whole
		p.reportAt(line, "", "is not valid YAML: "+m[2], "look for indentation, quotes, brackets and tabs in this line and the next")
	}
}

// has reports whether the file has the field.
func (p *problems) has(field string) bool {
	_, ok := p.lines[field]
	return ok
}

func (p *problems) lineOf(field string) int {
	for {
		if line, ok := p.lines[field]; ok || field == "" {
			return line
		}
		field = field[:max(0, strings.LastIndexAny(field, ".["))]
	}
}

// err returns all mistakes, in the order of their lines, as one error, or nil.
func (p *problems) err() error {
	if len(p.found) == 0 {
		return nil
	}
	slices.SortStableFunc(p.found, func(a, b *Problem) int { return cmp.Compare(a.Line, b.Line) })
	all := make([]error, len(p.found))
	for i, q := range p.found {
		all[i] = q
	}
	return hint.Wrap(errors.Join(all...), "correct these lines; docs/configuration.md explains every field")
}
