package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

const (
	mostGrowthMiB = 10
	mostGrowth    = 8 // of descriptors, and of threads
)

// report is what came of a run.
type report struct {
	Load          *tally
	Faults        int
	Died          bool
	Stall, Healed time.Duration // the longest of each; a stall is a time without any success
	Ill           error         // nil: it healed
	StopErr       error
	Start, End    resources
	Sessions      int // most at once
	Unclosed      int // calls of C_CloseSession that were made to fail: each leaves a session on the token
	BusyFinalize  int
}

// counters takes what the faulty module counted.
func (r *report) counters(w *rig) {
	r.Sessions, r.Unclosed = w.module.MaxOpenSessions(), w.module.Injected("C_CloseSession")
	r.BusyFinalize = w.module.FinalizedWhileBusy()
}

// print writes the table, of one line, and what the failures were.
func (r *report) print(out io.Writer) {
	failed, kinds := 0, []string(nil)
	for kind, n := range r.Load.failed {
		failed += n
		kinds = append(kinds, fmt.Sprintf("failed: %d %s", n, kind))
	}
	slices.Sort(kinds)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "OPERATIONS\tFAILED\tFAULTS\tRECOVERIES\tLONGEST STALL\tSLOWEST HEALING\tMEMORY START\tEND\tFDS\tTHREADS\tSESSIONS")
	fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%s\t%s\t%.1f MiB\t%.1f MiB\t%d to %d\t%d to %d\tat most %d\n",
		r.Load.good+failed, failed, r.Faults, r.End.Recoveries-r.Start.Recoveries,
		r.Stall.Round(time.Millisecond), r.Healed.Round(time.Millisecond), r.Start.AnonMiB, r.End.AnonMiB,
		r.Start.Files, r.End.Files, r.Start.Threads, r.End.Threads, r.Sessions)
	_ = t.Flush()
	fmt.Fprintln(out, strings.Join(kinds, "\n"))
}

// broken says which promises were broken.
func (r *report) broken() []string {
	broken := slices.Clone(r.Load.wrong)
	check := func(bad bool, format string, args ...any) {
		if bad {
			broken = append(broken, fmt.Sprintf(format, args...))
		}
	}
	check(r.Load.wrongs > len(r.Load.wrong), "%d wrong answers in all", r.Load.wrongs)
	check(r.Died, "the program ended by itself")
	check(r.Ill != nil, "%v", r.Ill)
	check(r.StopErr != nil, "%v", r.StopErr)
	memory := r.End.AnonMiB - r.Start.AnonMiB
	files, threads := r.End.Files-r.Start.Files, r.End.Threads-r.Start.Threads
	check(memory >= mostGrowthMiB, "memory grew by %.1f MiB, not less than %d", memory, mostGrowthMiB)
	check(files > mostGrowth, "descriptors grew by %d, more than %d", files, mostGrowth)
	check(threads > mostGrowth, "threads grew by %d, more than %d", threads, mostGrowth)
	// One for login and refresh, and one while that one is being replaced.
	most := maxSessions + 2 + r.Unclosed
	check(r.Sessions > most, "%d sessions were open at once, more than %d (maxSessions %d, 2, and %d that the token was made to keep)",
		r.Sessions, most, maxSessions, r.Unclosed)
	check(r.BusyFinalize > 0, "C_Finalize was called %d times under a call: real modules crash on that", r.BusyFinalize)
	return broken
}
