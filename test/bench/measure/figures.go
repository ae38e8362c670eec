package measure

import (
	"fmt"
	"strings"
)

// Limit is what a figure must keep to.
type Limit struct {
	sign  string
	bound float64
}

// AtMost, Below and AtLeast are the three kinds of limit.
func AtMost(bound float64) *Limit  { return &Limit{"<=", bound} }
func Below(bound float64) *Limit   { return &Limit{"<", bound} }
func AtLeast(bound float64) *Limit { return &Limit{">=", bound} }

func (l *Limit) keeps(value float64) bool {
	switch l.sign {
	case "<":
		return value < l.bound
	case "<=":
		return value <= l.bound
	}
	return value >= l.bound
}

// Figures are numbers with names, in the order in which they came in. They are used by one goroutine.
type Figures []figure

type figure struct {
	what  string
	value float64
	unit  string
	limit *Limit // nil: reported, and not judged
}

// Figure adds one.
func (f *Figures) Figure(what string, value float64, unit string, l *Limit) {
	*f = append(*f, figure{what, value, unit, l})
}

// Missed counts those that do not keep to their limits.
func (f Figures) Missed() int {
	n := 0
	for _, one := range f {
		if one.limit != nil && !one.limit.keeps(one.value) {
			n++
		}
	}
	return n
}

// Judged is a section of them all with PASS or MISS.
func (f Figures) Judged(out *strings.Builder) {
	rows := [][]string{{"figure", "value", "limit", ""}}
	for _, one := range f {
		bound, verdict := "", ""
		if one.limit != nil {
			bound, verdict = fmt.Sprintf("%s %s", one.limit.sign, Number(one.limit.bound)), "PASS"
			if !one.limit.keeps(one.value) {
				verdict = "MISS"
			}
		}
		rows = append(rows, []string{one.what, Number(one.value) + " " + one.unit, bound, verdict})
	}
	Section(out, "Figures and their limits", rows)
}

// Benchmarks writes them as lines that benchstat reads.
func (f Figures) Benchmarks(out *strings.Builder) {
	out.WriteString("Unit value better=lower\n")
	for _, one := range f {
		fmt.Fprintf(out, "BenchmarkFigure/%s 1 %g value\n", Joined(one.what+" in "+one.unit), one.value)
	}
}
