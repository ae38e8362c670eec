package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/test/bench/measure"
)

// table is what comes out, in the order in which it came in. It is used by one goroutine.
type table struct {
	measure.Figures
	measured rounds
	held     [][]string // of the process, over many operations
	grown    [][]string // rows of growthHeading
	// growthLines are the same for benchstat.
	growthLines []string
	notes       []string
}

func (t *table) note(text string) { t.notes = append(t.notes, text) }

func (t *table) resources(ops int, r resources) {
	t.held = append(t.held, []string{fmt.Sprint(ops), fmt.Sprintf("%.1f", r.AnonMiB), fmt.Sprint(r.Threads), fmt.Sprint(r.Files), fmt.Sprint(r.Sessions)})
}

// write writes all of it as tables for people, each line after prefix.
func (t *table) write(out io.Writer, prefix string) error {
	var text strings.Builder
	measure.Section(&text, "", t.operations())
	measure.Section(&text, "What the process holds over many operations", append([][]string{{"operations", "RssAnon MiB", "threads", "descriptors", "sessions"}}, t.held...))
	measure.Section(&text, "How it grows, one thing at a time", append([][]string{growthHeading()}, t.grown...))
	t.Judged(&text)
	for _, note := range t.notes {
		fmt.Fprintf(&text, "\nnote: %s\n", note)
	}
	return measure.WriteLines(out, prefix, text.String())
}

// operations is one row for each operation of the plugin, with what was measured beside it.
func (t *table) operations() [][]string {
	all := append(append([]string{whoN, whoR}, beside...), whoPlugin)
	judged := all[2:]
	heading := []string{"delay", "profile", "operation", "clients"}
	for _, who := range all {
		heading = append(heading, who+" p50", "/s")
	}
	heading = append(heading, "p99")
	for _, what := range []string{"p50/(N+R) ", "rate ratio "} {
		for _, who := range judged {
			heading = append(heading, what+who)
			what = ""
		}
	}
	rows := [][]string{heading}
	for _, p := range t.points(whoPlugin) {
		of := func(who string) point {
			if p.Who = who; who == whoN {
				return point{whoN, "", p.Op, p.Clients, p.Delay}
			}
			return p
		}
		row := []string{p.Delay.String(), p.Profile, p.Op, fmt.Sprint(p.Clients)}
		for _, who := range all {
			row = append(row, micros(t.measured.median(of(who), p50)), whole(t.measured.median(of(who), sample.Rate)))
		}
		row = append(row, micros(t.measured.median(of(whoPlugin), p99)))
		for _, f := range []func(n, bare, plugin sample) float64{latencyRatio, rateRatio} {
			for _, who := range judged {
				row = append(row, ratio(t.measured.perRound(of(who), f)))
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// ratio shows the median over the rounds; "-" for what was not measured.
func ratio(perRound []float64) string {
	if len(perRound) == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", measure.Median(perRound))
}

// points are those measured of one of the three, in the table's order.
func (t *table) points(who string) []point {
	var points []point
	for p := range t.measured {
		if p.Who == who {
			points = append(points, p)
		}
	}
	order := []string{opEncrypt, opDecrypt, opStatus}
	slices.SortFunc(points, func(a, b point) int {
		return cmp.Or(cmp.Compare(a.Delay, b.Delay), cmp.Compare(a.Profile, b.Profile),
			cmp.Compare(slices.Index(order, a.Op), slices.Index(order, b.Op)), cmp.Compare(a.Clients, b.Clients))
	})
	return points
}

func p50(s sample) float64 { return float64(s.P50) }
func p99(s sample) float64 { return float64(s.P99) }

// micros shows nanoseconds as microseconds; "-" for what was not measured.
func micros(ns float64) string {
	if ns == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f us", ns/1e3)
}

func whole(v float64) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f", v)
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
