// Command record runs a program and writes what it prints, with the times at which it printed it, as an animated SVG:
// docs/demo.svg is made of a real run of the demo by `make recording`. Nothing but the output of that run is in it.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// moment is one printed line, and how long after the start it came.
type moment struct {
	at   time.Duration
	text string
}

func main() {
	output := flag.String("o", "docs/demo.svg", "the `file` to write")
	flag.Parse()
	if err := record(*output, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
}

func record(path string, command []string) error {
	if len(command) == 0 {
		return fmt.Errorf("no command is given")
	}
	cmd := exec.CommandContext(context.Background(), command[0], command[1:]...) //nolint:gosec // the caller's command
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	moments, err := collect(io.TeeReader(pipe, os.Stdout), time.Now)
	if err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w", command[0], err)
	}
	return os.WriteFile(path, []byte(render(moments)), 0o644) //nolint:gosec // a picture for a document
}

// collect reads lines until the end, and notes when each came.
func collect(r io.Reader, now func() time.Time) ([]moment, error) {
	began := now()
	home, _ := os.UserHomeDir() // "": nothing is replaced
	var all []moment
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		all = append(all, moment{now().Sub(began), shorten(lines.Text(), home)})
	}
	return all, lines.Err()
}

// The picture is a terminal of columns by rows characters.
const (
	columns, rows = 125, 30
	charWidth     = 7.8 // of the font below
	lineHeight    = 18
	margin        = 12
	// A pause of the run is shown for as long as it was, and no longer than longest; the end stays for ending.
	shortest = 120 * time.Millisecond
	longest  = 1500 * time.Millisecond
	ending   = 8 * time.Second
)

// shorten cuts a line to the width of the terminal, and replaces the folders of this machine, which no reader has.
func shorten(text, home string) string {
	if home != "" {
		text = strings.ReplaceAll(text, home+"/", "~/")
	}
	if at := strings.Index(text, "/hsm-kms-demo-"); at >= 0 {
		end := at + len("/hsm-kms-demo-")
		for end < len(text) && text[end] >= '0' && text[end] <= '9' {
			end++
		}
		text = text[:at] + "/hsm-kms-demo" + text[end:]
	}
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
	if runes := []rune(text); len(runes) > columns {
		text = string(runes[:columns-1]) + "…"
	}
	return text
}

// render draws the lines below each other in a group that moves up by one line as each comes. A reader who asks for no motion
// sees the end.
func render(moments []moment) string {
	shown := make([]time.Duration, len(moments)) // when each line appears in the picture
	var at, before time.Duration
	for i, m := range moments {
		at += min(max(m.at-before, shortest), longest)
		before, shown[i] = m.at, at
	}
	total := at + ending
	width, height := int(columns*charWidth)+2*margin, rows*lineHeight+2*margin
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="A recording of make demo">
<style>
text { font: 13px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; fill: #d0d7de; white-space: pre; }
.step { fill: #7ee787; font-weight: bold; }
#lines { transform: translateY(-%dpx); animation: run %.2fs step-end infinite; }
@media (prefers-reduced-motion: reduce) { #lines { animation: none; } }
@keyframes run {
0%% { transform: translateY(0); }
`, width, height, len(moments)*lineHeight, total.Seconds())
	for i, when := range shown {
		fmt.Fprintf(&b, "%.3f%% { transform: translateY(-%dpx); }\n", 100*when.Seconds()/total.Seconds(), (i+1)*lineHeight)
	}
	fmt.Fprintf(&b, "}\n</style>\n<rect width=\"%d\" height=\"%d\" rx=\"8\" fill=\"#0d1117\"/>\n", width, height)
	fmt.Fprintf(&b, "<svg y=\"%d\" width=\"%d\" height=\"%d\">\n<g id=\"lines\">\n", margin, width, rows*lineHeight)
	for i, m := range moments {
		if strings.TrimSpace(m.text) == "" {
			continue
		}
		class := ""
		if m.text[0] >= '0' && m.text[0] <= '9' {
			class = ` class="step"`
		}
		fmt.Fprintf(&b, "<text x=\"%d\" y=\"%d\"%s>%s</text>\n", margin, (rows+i)*lineHeight+lineHeight-4, class, escape(m.text))
	}
	b.WriteString("</g>\n</svg>\n</svg>\n")
	return b.String()
}

func escape(text string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(text)
}
