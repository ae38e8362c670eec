package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf16"
)

// json writes v for programs.
func (c *command) json(v any) error {
	var text strings.Builder
	e := json.NewEncoder(&text)
	e.SetIndent("", "  ")
	err := e.Encode(v)
	if err == nil {
		_, err = io.WriteString(c.out, harmless(text.String()))
	}
	if err != nil {
		return fmt.Errorf("writing output: %w", err)
	}
	return nil
}

// harmless makes what others had a part in safe for a terminal: control and format characters, other than the end of a line
// and a tab, become \uXXXX. Only a JSON string can have one, and means the same afterwards.
func harmless(text string) string {
	text = strings.ToValidUTF8(text, "\ufffd")
	unsafe := func(r rune) bool { return !unicode.IsPrint(r) && r != '\n' && r != '\t' }
	if strings.IndexFunc(text, unsafe) < 0 {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if !unsafe(r) {
			b.WriteRune(r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	return b.String()
}

// table writes rows for people; the first row is the heading.
func (c *command) table(rows [][]string) error {
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("writing output: %w", err)
	}
	return nil
}
