package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf16"

	"golang.org/x/term"
	"sigs.k8s.io/yaml"
)

// structured reports whether the output is for programs.
func (c *command) structured() bool { return c.output == "json" || c.output == "yaml" }

// json writes v for programs, as JSON or with the same fields as YAML.
func (c *command) json(v any) error {
	var made bytes.Buffer
	e := json.NewEncoder(&made)
	e.SetIndent("", "  ")
	err := e.Encode(v)
	text := made.Bytes()
	if err == nil && c.output == "yaml" {
		text, err = yaml.JSONToYAML(text)
	}
	if err == nil {
		_, err = io.WriteString(c.out, harmless(string(text)))
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

// printable writes through harmless.
type printable struct{ io.Writer }

func (p printable) Write(text []byte) (int, error) {
	if _, err := io.WriteString(p.Writer, harmless(string(text))); err != nil {
		return 0, err
	}
	return len(text), nil
}

// colour is one of a terminal's: the parameter of SGR, of two digits.
type colour int

const (
	red    colour = 31
	yellow colour = 33
	usual  colour = 39
)

// isColoured reports whether what is written there may have colours: no-color.org.
func isColoured(out io.Writer) bool {
	file, ok := out.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && term.IsTerminal(int(file.Fd())) //nolint:gosec // a descriptor
}

// painted is the text of a cell in a colour. Every cell of a column is to be painted, so that all are longer by as much.
func painted(on bool, how colour, text string) string {
	if !on {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", how, text)
}

// headed writes rows for people; the first row is the heading, which --no-headers leaves out.
func (c *command) headed(rows [][]string) error {
	if c.noHeaders {
		rows = rows[1:]
	}
	return c.table(rows)
}

// table writes rows for people, none of which is a heading.
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
