package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/hsm-kms/hsm-kms/test/bench/measure"
)

// The files in the results' folder.
const (
	latestFile   = "latest.txt"
	previousFile = "previous.txt"
)

// save writes the table, as comments, and every round of every point in Go's benchmark format, which benchstat
// compares. What was there becomes the previous results.
func save(t *table, dir string) (path string, err error) {
	return measure.Save(dir, latestFile, previousFile, func(out io.Writer) error {
		return errors.Join(t.write(out, "# "), writeBenchmarks(out, t))
	})
}

// writeBenchmarks writes the lines that benchstat reads (go.dev/design/14313-benchmark-format): one for each round, so
// that it sees how much the rounds differ.
func writeBenchmarks(out io.Writer, t *table) error {
	var b strings.Builder
	b.WriteString(measure.Heading("test/bench"))
	b.WriteString("Unit ops/s better=higher\nUnit rate-ratio better=higher\nUnit p50-ratio better=lower\n")
	for _, who := range append([]string{whoN, whoR, whoPlugin}, beside...) {
		for _, p := range t.points(who) {
			writePoint(&b, t, p)
		}
	}
	for _, line := range t.growthLines {
		b.WriteString(line + "\n")
	}
	t.Benchmarks(&b)
	_, err := io.WriteString(out, b.String())
	return err
}

func writePoint(b *strings.Builder, t *table, p point) {
	name := fmt.Sprintf("BenchmarkKMS/who=%s/delay=%s/profile=%s/op=%s/clients=%d", p.Who, p.Delay, p.Profile, p.Op, p.Clients)
	latency := t.measured.perRound(p, latencyRatio)
	rates := t.measured.perRound(p, rateRatio)
	for i, s := range t.measured[p] {
		fmt.Fprintf(b, "%s %d %d p50-ns %d p99-ns %.1f ops/s", name, s.Ops, s.P50.Nanoseconds(), s.P99.Nanoseconds(), s.Rate())
		if p.Who != whoN && p.Who != whoR {
			fmt.Fprintf(b, " %.4f p50-ratio %.4f rate-ratio", latency[i], rates[i])
		}
		b.WriteByte('\n')
	}
}
