package main

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
	"unicode"
)

// The files in the results' folder.
const (
	latestFile   = "latest.txt"
	previousFile = "previous.txt"
)

// save writes the table, as comments, and every round of every point in Go's benchmark format, which benchstat
// compares. What was there becomes the previous results.
func save(t *table, dir string) (path string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("making the results' folder: %w", err)
	}
	path = filepath.Join(dir, latestFile)
	if err := os.Rename(path, filepath.Join(dir, previousFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("keeping the previous results: %w", err)
	}
	file, err := os.Create(filepath.Clean(path))
	if err != nil {
		return "", fmt.Errorf("writing the results: %w", err)
	}
	out := bufio.NewWriter(file)
	err = errors.Join(t.write(out, "# "), writeBenchmarks(out, t), out.Flush(), file.Close())
	if err != nil {
		return "", fmt.Errorf("writing the results to %s: %w", path, err)
	}
	return path, nil
}

// writeBenchmarks writes the lines that benchstat reads (go.dev/design/14313-benchmark-format): one for each round, so
// that it sees how much the rounds differ.
func writeBenchmarks(out io.Writer, t *table) error {
	var b strings.Builder
	fmt.Fprintf(&b, "\ngoos: %s\ngoarch: %s\npkg: github.com/hsm-kms/hsm-kms/test/bench\ncpu: %s\n", runtime.GOOS, runtime.GOARCH, processor())
	b.WriteString("Unit ops/s better=higher\nUnit rate-ratio better=higher\nUnit p50-ratio better=lower\nUnit value better=lower\n")
	for _, who := range []string{whoN, whoR, whoB, whoPlugin} {
		for _, p := range t.points(who) {
			writePoint(&b, t, p)
		}
	}
	for _, f := range t.figures {
		fmt.Fprintf(&b, "BenchmarkFigure/%s 1 %g value\n", joined(f.what+" in "+f.unit), f.value)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func writePoint(b *strings.Builder, t *table, p point) {
	name := fmt.Sprintf("BenchmarkKMS/who=%s/delay=%s/profile=%s/op=%s/clients=%d", p.Who, p.Delay, p.Profile, p.Op, p.Clients)
	latency := t.measured.perRound(p, p.Clients, latencyRatio)
	rates := t.measured.perRound(p, rateLoops(p), rateRatio)
	for i, s := range t.measured[p] {
		fmt.Fprintf(b, "%s %d %d p50-ns %d p99-ns %.1f ops/s", name, s.Ops, s.P50.Nanoseconds(), s.P99.Nanoseconds(), s.rate())
		if p.Who == whoPlugin || p.Who == whoB {
			fmt.Fprintf(b, " %.4f p50-ratio %.4f rate-ratio", latency[i], rates[i])
		}
		b.WriteByte('\n')
	}
}

// joined makes one word of a text, as the name of a benchmark must be.
func joined(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || r == ',' || r == '(' || r == ')' }), "_")
}

// processor names the machine's CPU; where the system does not tell, its architecture.
func processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return fmt.Sprintf("%s x %d", strings.TrimSpace(value), runtime.NumCPU())
		}
	}
	return runtime.GOARCH
}
