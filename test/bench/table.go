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
	machine  []string
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
	for _, line := range t.machine {
		fmt.Fprintln(&text, line)
	}
	t.operations(&text)
	measure.Section(&text, "What the process holds over many operations", append([][]string{{"operations", "RssAnon MiB", "threads", "descriptors", "sessions"}}, t.held...))
	measure.Section(&text, "How it grows, one thing at a time", append([][]string{growthHeading()}, t.grown...))
	t.Judged(&text)
	for _, note := range t.notes {
		fmt.Fprintf(&text, "\nnote: %s\n", note)
	}
	return measure.WriteLines(out, prefix, text.String())
}

// operations writes, for each delay, how long the operations take and how many there are in a second, of the plugin and of what
// was measured beside it.
func (t *table) operations(out *strings.Builder) {
	all := append(append([]string{whoN, whoR}, beside...), whoPlugin)
	var delays []time.Duration
	for _, p := range t.points(whoPlugin) {
		if !slices.Contains(delays, p.Delay) {
			delays = append(delays, p.Delay)
		}
	}
	for _, delay := range delays {
		where := "SoftHSM"
		if delay > 0 {
			where += fmt.Sprintf(", %s more per call", delay)
		}
		measure.Section(out, where+": p50 in microseconds, p99 of the plugin, and p50 in ratio to N + R", t.rows(delay, all, "", micros, p50, latencyRatio))
		measure.Section(out, where+": operations in a second, and their ratio to 1/(1/N + 1/R)", t.rows(delay, all, "/s", whole, sample.Rate, rateRatio))
	}
}

// rows have one operation with one number of clients each.
func (t *table) rows(delay time.Duration, all []string, unit string, show func(float64) string, of func(sample) float64, compare func(n, bare, plugin sample) float64) [][]string {
	judged := all[2:]
	heading := []string{"profile", "operation", "clients"}
	for _, who := range all {
		heading = append(heading, who+unit)
	}
	if unit == "" {
		heading = append(heading, "p99")
	}
	rows := [][]string{append(heading, judged...)}
	for _, p := range t.points(whoPlugin) {
		if p.Delay != delay {
			continue
		}
		at := func(who string) point {
			if p.Who = who; who == whoN {
				return point{whoN, "", p.Op, p.Clients, p.Delay}
			}
			return p
		}
		row := []string{p.Profile, p.Op, fmt.Sprint(p.Clients)}
		for _, who := range all {
			row = append(row, show(t.measured.median(at(who), of)))
		}
		if unit == "" {
			row = append(row, show(t.measured.median(at(whoPlugin), p99)))
		}
		for _, who := range judged {
			row = append(row, ratio(t.measured.perRound(at(who), compare)))
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

// p99OfP50 is how far the slow calls are from the usual ones.
func p99OfP50(s sample) float64 { return p99(s) / p50(s) }

// micros shows nanoseconds as microseconds; "-" for what was not measured.
func micros(ns float64) string { return whole(ns / 1e3) }

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
