package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/bench"
	"github.com/hsm-kms/hsm-kms/internal/capacity"
)

// benchJSON is the output of --capacity.
type benchJSON struct {
	Rows     []bench.Row  `json:"rows"`
	Capacity capacityJSON `json:"capacity"`
}

// printBench prints everything.
func (c *command) printBench(f *benchFlags, rows []bench.Row, p capacity.Plugin) error {
	told := capacityOf(f.plane, p, rows)
	if c.output == "json" && f.capacity {
		return c.json(benchJSON{rows, told})
	}
	err := c.printRows(f, rows)
	if c.output == "json" || err != nil {
		return err
	}
	return c.printCapacity(told, p)
}

// printRows prints what was measured. Of a run that was stopped, the object of --capacity would be half of one.
func (c *command) printRows(f *benchFlags, rows []bench.Row) error {
	if c.output == "json" {
		if f.capacity {
			return nil
		}
		return c.json(append([]bench.Row{}, rows...)) // [] and not null
	}
	if len(rows) == 0 {
		return nil
	}
	table := [][]string{{"OP", "CLIENTS", "PER SECOND", "P50", "P99", "HSM CALLS PER OP"}}
	for _, r := range rows {
		table = append(table, []string{
			r.Op, strconv.Itoa(r.Clients), threePlaces(r.OpsPerSecond), threePlaces(r.P50) + " ms", threePlaces(r.P99) + " ms", threePlaces(r.HSMCallsPerOp),
		})
	}
	return c.table(table)
}

// printCapacity prints what a control plane asks, in sentences: each number needs its words.
func (c *command) printCapacity(t capacityJSON, p capacity.Plugin) error {
	atLeast, atMost := "at least ", "at most "
	if t.LimitedBy == byToken {
		atLeast, atMost = "", ""
	}
	w := &lines{out: c.out}
	w.add("\nA call takes %s ms; %s a second were the most: %s.", threePlaces(t.CallMilliseconds), threePlaces(t.MostCallsPerSecond), whatLimits(t, p.MaxSessions))
	w.add("\nA control plane of %s (--restarts %s of each and --rotations %s a day, --deks %d in etcd) asks of it:\n",
		counted(t.Nodes, "node"), threePlaces(t.RestartsPerNodeDay), threePlaces(t.RotationsPerDay), t.DEKs)
	probes := float64(t.Nodes) * p.Probe() / p.ProbeInterval.Seconds()
	rows := [][]string{
		{"WHEN", "HSM CALLS", ""},
		{"idle", threePlaces(t.IdleCallsPerSecond) + " a second", fmt.Sprintf("%s percent of the most; %s for probes (probeInterval %s), the rest to read the ring (refreshInterval %s)",
			threePlaces(100*t.IdleShare), threePlaces(probes), short(p.ProbeInterval), short(p.RefreshInterval))},
		{"a node starts cold", threePlaces(t.ColdStartCalls), fmt.Sprintf("%s ms with %s at work on the DEKs, %s ms one DEK after the other",
			threePlaces(t.ColdStartMS), counted(p.MaxSessions, "session"), threePlaces(t.ColdStartInTurnMS))},
		{"all start at once", threePlaces(t.ColdStartCalls * float64(t.Nodes)), atMost + threePlaces(t.AllAtOnceMS) + " ms, every session at work"},
		{"a rotation", threePlaces(t.RotationCalls), "on all nodes together, without the rewriting of what is stored"},
		{"a day", grouped(int64(t.CallsPerDay)), fmt.Sprintf("%s seals: the nonces of a key last %s", grouped(int64(t.SealsPerDay)), lasting(t.KeyLastsDays))},
	}
	err := errors.Join(w.err, c.table(rows))
	w.add("\nSessions: %d when idle, %d after all were busy (%d a node: maxSessions, and one for login).", t.SessionsIdle, t.SessionsMost, p.MaxSessions+1)
	w.add("With half of the rate, %s%s control planes like this one could idle on this token, if it has %s sessions.",
		atLeast, grouped(int64(t.ControlPlanesAtAHalf)), grouped(int64(t.ControlPlanesAtAHalf)*int64(t.SessionsMost)))
	return errors.Join(err, w.err)
}

// lasting says days as people do.
func lasting(days float64) string {
	const year = 365
	switch {
	case days > 1000*year:
		return "more than 1,000 years"
	case days > 2*year:
		return fmt.Sprintf("%.0f years", days/year)
	}
	return fmt.Sprintf("%.0f days", days)
}

// short writes a duration without its zeros: 30s, 5m.
func short(d time.Duration) string {
	switch {
	case d >= time.Minute && d%time.Minute == 0:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d%time.Second == 0:
		return fmt.Sprintf("%ds", d/time.Second)
	}
	return d.String()
}

// threePlaces shows a number with as many digits as mean something, and large ones in groups.
func threePlaces(v float64) string {
	switch {
	case v >= 100:
		return grouped(int64(v + 0.5))
	case v >= 10:
		return trimZeros(fmt.Sprintf("%.1f", v))
	case v >= 1:
		return trimZeros(fmt.Sprintf("%.2f", v))
	case v >= 0.001 || v == 0:
		return trimZeros(fmt.Sprintf("%.3f", v))
	}
	return "less than 0.001"
}

// trimZeros takes what says nothing off a decimal fraction.
func trimZeros(s string) string { return strings.TrimSuffix(strings.TrimRight(s, "0"), ".") }
