package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/test/bench/measure"
)

// The variants that the others are compared with.
const (
	none   = "none"
	aescbc = "aescbc"
)

// table is all that was measured, by variant, in the order of the rounds, and the figures that are made of it.
type table struct {
	measure.Figures
	options  options
	machine  []string
	others   string // of the processors' time
	variants []string
	measured map[string][]turn
}

// write writes all of it as tables for people, each line after prefix.
func (t *table) write(out io.Writer, prefix string) error {
	var text strings.Builder
	for _, line := range t.machine {
		fmt.Fprintln(&text, line)
	}
	fmt.Fprintf(&text, "%d rounds, %d Secrets of %d bytes, keys in the ring: %d; %s; load %s at the end\n",
		t.options.rounds, t.options.secrets, t.options.size, t.options.keys, t.others, measure.LoadNow())
	measure.Section(&text, "Start of an API server (x: to no encryption, to aescbc)", t.starts())
	measure.Section(&text, "Secrets created and read, from etcd (x: to no encryption, to aescbc)", t.steady())
	t.Judged(&text)
	return measure.WriteLines(out, prefix, text.String())
}

// limitedDEKs is the number of DEKs for which there is a limit.
const limitedDEKs = 200

// judge makes the figures: of each variant of the plugin to aescbc.
func (t *table) judge() {
	for _, v := range t.variants {
		if v == none || v == aescbc {
			continue
		}
		var bound *measure.Limit
		if strings.HasPrefix(v, fmt.Sprintf("hsm-kms, %d DEKs", limitedDEKs)) && strings.HasSuffix(v, awayName) {
			bound = measure.AtMost(1.1)
		}
		t.Figure("start, "+v, t.toCBC(v, ready), "x aescbc", bound)
		t.Figure("first list, "+v, t.toCBC(v, list), "x aescbc", nil)
		for _, k := range kinds() {
			if k.clients == 1 {
				t.Figure(k.op+" p50, "+v, t.toCBC(v, func(r turn) float64 { return float64(r.Loads[k].P50) }), "x aescbc", nil)
			}
		}
	}
}

func (t *table) toCBC(variant string, f func(turn) float64) float64 {
	return measure.Median(t.ratios(variant, aescbc, f))
}

func (t *table) starts() [][]string {
	rows := [][]string{{"encryption", "ready", "x none", "x aescbc", "cache filled", "first list", "x none", "again", "start to list", "x none", "x aescbc", "Decrypts", "at once"}}
	for _, v := range t.variants {
		rows = append(rows, []string{
			v, seconds(t.median(v, ready)), t.ratio(v, none, ready), t.ratio(v, aescbc, ready),
			millis(t.median(v, func(r turn) float64 { return float64(r.Filled) })),
			millis(t.median(v, list)), t.ratio(v, none, list), millis(t.median(v, func(r turn) float64 { return float64(r.Again) })),
			seconds(t.median(v, listed)), t.ratio(v, none, listed), t.ratio(v, aescbc, listed),
			measure.Number(t.median(v, func(r turn) float64 { return float64(r.Decrypt) })),
			measure.Number(t.median(v, func(r turn) float64 { return float64(r.AtOnce) })),
		})
	}
	return rows
}

func (t *table) steady() [][]string {
	rows := [][]string{{"operation", "clients", "encryption", "p50", "x none", "x aescbc", "p99", "x none", "x aescbc", "rate /s", "HSM calls"}}
	for _, k := range kinds() {
		p50 := func(r turn) float64 { return float64(r.Loads[k].P50) }
		p99 := func(r turn) float64 { return float64(r.Loads[k].P99) }
		for _, v := range t.variants {
			rows = append(rows, []string{
				k.op, fmt.Sprint(k.clients), v, millis(t.median(v, p50)), t.ratio(v, none, p50), t.ratio(v, aescbc, p50),
				millis(t.median(v, p99)), t.ratio(v, none, p99), t.ratio(v, aescbc, p99),
				fmt.Sprintf("%.0f", t.median(v, func(r turn) float64 { return r.Loads[k].Rate() })),
				measure.Number(t.median(v, func(r turn) float64 { return float64(r.Steady) })),
			})
		}
	}
	return rows
}

func ready(r turn) float64  { return float64(r.Ready) }
func list(r turn) float64   { return float64(r.List) }
func listed(r turn) float64 { return float64(r.Listed()) }

// median is that over the rounds of what f says of each turn.
func (t *table) median(variant string, f func(turn) float64) float64 {
	var values []float64
	for _, r := range t.measured[variant] {
		values = append(values, f(r))
	}
	return measure.Median(values)
}

// ratio shows the median over the rounds of the variant's figure over that of another in the same round.
func (t *table) ratio(variant, to string, f func(turn) float64) string {
	values := t.ratios(variant, to, f)
	if len(values) == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", measure.Median(values))
}

// ratios are made within each round.
func (t *table) ratios(variant, to string, f func(turn) float64) (values []float64) {
	for i, r := range t.measured[variant] {
		if i < len(t.measured[to]) {
			values = append(values, f(r)/f(t.measured[to][i]))
		}
	}
	return values
}

// save writes the table, as comments, and every turn in Go's benchmark format, which benchstat compares.
func (t *table) save(out io.Writer) error {
	if err := t.write(out, "# "); err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString(measure.Heading("test/bench/apiserver"))
	b.WriteString("Unit ops/s better=higher\nUnit calls better=lower\n")
	for _, v := range t.variants {
		name := "/encryption=" + measure.Joined(v)
		for _, r := range t.measured[v] {
			fmt.Fprintf(&b, "BenchmarkStart%s 1 %d ready-ns %d list-ns %d listed-ns %d decrypts\n", name, r.Ready, r.List, r.Listed(), r.Decrypt)
			for _, k := range kinds() {
				s := r.Loads[k]
				fmt.Fprintf(&b, "BenchmarkSecrets%s/op=%s/clients=%d %d %d p50-ns %d p99-ns %.1f ops/s\n", name, k.op, k.clients, s.Ops, s.P50, s.P99, s.Rate())
			}
			fmt.Fprintf(&b, "BenchmarkSecretsHSM%s 1 %d calls\n", name, r.Steady)
		}
	}
	t.Benchmarks(&b)
	_, err := io.WriteString(out, b.String())
	return err
}

func seconds(ns float64) string { return fmt.Sprintf("%.2f s", ns/float64(time.Second)) }

// millis shows nanoseconds as milliseconds; "-" for what was not measured.
func millis(ns float64) string {
	if ns == 0 {
		return "-"
	}
	return measure.Number(ns/float64(time.Millisecond)) + " ms"
}
