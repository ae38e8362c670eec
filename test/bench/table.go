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

// limit is what a figure must keep to.
type limit struct {
	sign  string
	bound float64
}

func atMost(bound float64) *limit  { return &limit{"<=", bound} }
func below(bound float64) *limit   { return &limit{"<", bound} }
func atLeast(bound float64) *limit { return &limit{">=", bound} }

func (l *limit) keeps(value float64) bool {
	switch l.sign {
	case "<":
		return value < l.bound
	case "<=":
		return value <= l.bound
	}
	return value >= l.bound
}

// figure is one number with a name.
type figure struct {
	what  string
	value float64
	unit  string
	limit *limit // nil: told, and not judged
}

// table is what comes out, in the order in which it came in. It is used by one goroutine.
type table struct {
	measured rounds
	figures  []figure
	held     [][]string // of the process, over many operations
	notes    []string
}

func (t *table) figure(what string, value float64, unit string, l *limit) {
	t.figures = append(t.figures, figure{what, value, unit, l})
}

func (t *table) note(text string) { t.notes = append(t.notes, text) }

func (t *table) resources(ops int, r resources) {
	t.held = append(t.held, []string{fmt.Sprint(ops), fmt.Sprintf("%.1f", r.AnonMiB), fmt.Sprint(r.Threads), fmt.Sprint(r.Files), fmt.Sprint(r.Sessions)})
}

// missed counts the figures that do not keep to their limits.
func (t *table) missed() int {
	n := 0
	for _, f := range t.figures {
		if f.limit != nil && !f.limit.keeps(f.value) {
			n++
		}
	}
	return n
}

// write writes all of it as tables for people, each line after prefix.
func (t *table) write(out io.Writer, prefix string) error {
	var text strings.Builder
	measure.Section(&text, "", t.operations())
	measure.Section(&text, "What the process holds over many operations", append([][]string{{"operations", "RssAnon MiB", "threads", "descriptors", "sessions"}}, t.held...))
	measure.Section(&text, "Figures and their limits", t.judged())
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

func (t *table) judged() [][]string {
	rows := [][]string{{"figure", "value", "limit", ""}}
	for _, f := range t.figures {
		bound, verdict := "", ""
		if f.limit != nil {
			bound, verdict = fmt.Sprintf("%s %s", f.limit.sign, measure.Number(f.limit.bound)), "PASS"
			if !f.limit.keeps(f.value) {
				verdict = "MISS"
			}
		}
		rows = append(rows, []string{f.what, measure.Number(f.value) + " " + f.unit, bound, verdict})
	}
	return rows
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
