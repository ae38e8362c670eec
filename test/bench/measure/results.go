package measure

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
	"unicode"
)

// makeFolder makes the results' folder and sees that it can be written to: to be told that after minutes of measuring is no use.
func makeFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making the results' folder: %w", err)
	}
	file, err := os.CreateTemp(dir, "")
	if err != nil {
		return fmt.Errorf("trying the results' folder: %w", err)
	}
	if err := errors.Join(file.Close(), os.Remove(file.Name())); err != nil {
		return fmt.Errorf("trying the results' folder: %w", err)
	}
	return nil
}

// Save has write write the results to the file latest in dir (see Flags). What was there becomes previous.
func Save(dir, latest, previous string, write func(io.Writer) error) (path string, err error) {
	path = filepath.Join(dir, latest)
	if err := os.Rename(path, filepath.Join(dir, previous)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("keeping the previous results: %w", err)
	}
	file, err := os.Create(filepath.Clean(path))
	if err != nil {
		return "", fmt.Errorf("writing the results: %w", err)
	}
	out := bufio.NewWriter(file)
	if err := errors.Join(write(out), out.Flush(), file.Close()); err != nil {
		return "", fmt.Errorf("writing the results to %s: %w", path, err)
	}
	return path, nil
}

// Heading begins results in Go's benchmark format (go.dev/design/14313-benchmark-format): what benchstat must find
// equal before it compares. pkg is the program's folder below the module.
func Heading(pkg string) string {
	return fmt.Sprintf("\ngoos: %s\ngoarch: %s\npkg: github.com/hsm-kms/hsm-kms/%s\ncpu: %s\n", runtime.GOOS, runtime.GOARCH, pkg, Processor())
}

// Joined makes one word of a text, as the name of a benchmark must be.
func Joined(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || r == ',' || r == '(' || r == ')' }), "_")
}

// Section writes rows in columns below a title; one with its heading row alone is left out.
func Section(out *strings.Builder, title string, rows [][]string) {
	if len(rows) < 2 {
		return
	}
	if title != "" {
		fmt.Fprintf(out, "\n%s\n", title)
	}
	columns := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(columns, strings.Join(row, "\t"))
	}
	_ = columns.Flush() // a strings.Builder takes all
}

// WriteLines writes text with each line after prefix, and without spaces at their ends.
func WriteLines(out io.Writer, prefix, text string) error {
	for line := range strings.Lines(text) {
		if _, err := fmt.Fprint(out, strings.TrimRight(prefix+strings.TrimSuffix(line, "\n"), " ")+"\n"); err != nil {
			return fmt.Errorf("writing the table: %w", err)
		}
	}
	return nil
}

// Number shows three significant places, and never an exponent.
func Number(v float64) string {
	switch a := max(v, -v); {
	case a >= 100 || v == float64(int64(v)):
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}
