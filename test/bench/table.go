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

// operations is one row for each operation of the plugin, with the N and R that were measured beside it.
func (t *table) operations() [][]string {
	rows := [][]string{{"delay", "profile", "operation", "clients", "N p50", "R p50", "B p50", "p50", "p99", "N /s", "R /s", "B /s", "rate /s", "p50/(N+R)", "(B)", "rate ratio", "(B)"}}
	for _, p := range t.points(whoPlugin) {
		n, r := point{whoN, "", p.Op, p.Clients, p.Delay}, p
		r.Who = whoR
		b := p
		b.Who = whoB
		rows = append(rows, []string{
			p.Delay.String(), p.Profile, p.Op, fmt.Sprint(p.Clients),
			micros(t.measured.median(n, p50)), micros(t.measured.median(r, p50)), micros(t.measured.median(b, p50)),
			micros(t.measured.median(p, p50)), micros(t.measured.median(p, p99)),
			whole(t.measured.median(n, sample.Rate)), whole(t.measured.median(r, sample.Rate)),
			whole(t.measured.median(b, sample.Rate)), whole(t.measured.median(p, sample.Rate)),
			ratio(t.measured.perRound(p, latencyRatio)), ratio(t.measured.perRound(b, latencyRatio)),
			ratio(t.measured.perRound(p, rateRatio)), ratio(t.measured.perRound(b, rateRatio)),
		})
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
