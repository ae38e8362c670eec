package hold

import (
	"slices"
	"time"
)

// window is the time in which a node may be on hold for the configured time in all.
const window = 7 * 24 * time.Hour

// span is a time on hold, by the ledger's own clock.
type span struct {
	From time.Duration `json:"from"`
	To   time.Duration `json:"to"`
}

// maxSpans bounds the ledger. Beyond it the two oldest are made one.
const maxSpans = 256

// ledger counts the time on hold. Its clock is the time that has certainly passed since the first ledger of this stateDir was
// begun: CLOCK_BOOTTIME, added up over boots. It stands still between the last write of one boot and the next boot, so that time
// on hold is forgotten late and never early. Nobody can set it, and it counts suspended time.
//
// Boot, in all methods, is the time since boot.
type ledger struct {
	limit   time.Duration
	elapsed time.Duration // by the ledger's clock
	mark    time.Duration // time since boot at that
	spans   []span        // ended
	open    bool
	from    time.Duration // of the open one
	total   time.Duration // on hold in this process, the open one not included

	// Of the last durable write; everSaved false: there was none.
	everSaved bool
	saved     time.Duration // inAll at that time
	savedAt   time.Duration // time since boot
	savedOpen bool
}

// ledgerState is what is kept in stateDir.
type ledgerState struct {
	Version int           `json:"version"`
	BootID  string        `json:"bootID"`
	Boot    time.Duration `json:"boot"`
	Elapsed time.Duration `json:"elapsed"`
	Spans   []span        `json:"spans"`
	// Advance is time on hold that may follow this write without another one. A process that did not take it back was killed,
	// and has used it as far as anybody can know.
	Advance time.Duration `json:"advance"`
}

// newLedger goes on from what an earlier process left. unknown: it left something that cannot be read, and so all is used up.
func newLedger(limit time.Duration, was ledgerState, bootID string, boot time.Duration, unknown bool) *ledger {
	l := &ledger{limit: limit, elapsed: was.Elapsed, mark: boot, spans: was.Spans}
	charged := was.Advance
	switch {
	case was.BootID != bootID:
		l.elapsed += boot
	case boot >= was.Boot:
		l.elapsed += boot - was.Boot
		charged = min(charged, boot-was.Boot) // it was not on hold for longer than time has passed
	}
	if unknown {
		l.elapsed += window // so that the span below begins after 0
		l.spans = []span{{From: l.elapsed - limit, To: l.elapsed}}
	}
	if charged > 0 {
		l.spans = append(l.spans, span{From: l.elapsed - charged, To: l.elapsed})
	}
	return l
}

// advance is how much time on hold is charged beforehand.
func (l *ledger) advance() time.Duration { return min(time.Minute, l.limit/10) }

func (l *ledger) now(boot time.Duration) time.Duration { return l.elapsed + max(boot-l.mark, 0) }

// used is the time on hold within the window.
func (l *ledger) used(boot time.Duration) time.Duration {
	now := l.now(boot)
	var used time.Duration
	for _, s := range l.spans {
		used += max(s.To-max(s.From, now-window), 0)
	}
	if l.open {
		used += now - max(l.from, now-window)
	}
	return used
}

func (l *ledger) left(boot time.Duration) time.Duration { return max(l.limit-l.used(boot), 0) }

// inAll is the time on hold in this process.
func (l *ledger) inAll(boot time.Duration) time.Duration {
	if l.open {
		return l.total + l.now(boot) - l.from
	}
	return l.total
}

// counted reports whether the time on hold up to now is in stateDir, or was charged there beforehand.
func (l *ledger) counted(boot time.Duration) bool {
	return l.everSaved && l.inAll(boot)-l.saved <= l.advance()
}

// isDue reports whether the ledger is to be written.
func (l *ledger) isDue(boot time.Duration) bool {
	return !l.everSaved || l.open != l.savedOpen || l.inAll(boot)-l.saved > l.advance()/4 || boot-l.savedAt > saveAgain
}

func (l *ledger) begin(boot time.Duration) { l.open, l.from = true, l.now(boot) }

func (l *ledger) end(boot time.Duration) {
	if !l.open {
		return
	}
	now := l.now(boot)
	l.total += now - l.from
	l.spans = append(l.spans, span{From: l.from, To: now})
	l.open = false
}

// state is what is to be kept. advance: more time on hold may follow.
func (l *ledger) state(bootID string, boot time.Duration, advance bool) ledgerState {
	now := l.now(boot)
	l.spans = slices.DeleteFunc(l.spans, func(s span) bool { return s.To <= now-window })
	for len(l.spans) > maxSpans { // their sum, as late as the later one
		a, b := l.spans[0], l.spans[1]
		l.spans = slices.Replace(l.spans, 0, 2, span{From: b.From - (a.To - a.From), To: b.To})
	}
	s := ledgerState{Version: 1, BootID: bootID, Boot: boot, Elapsed: now, Spans: slices.Clone(l.spans)}
	if l.open {
		s.Spans = append(s.Spans, span{From: l.from, To: now})
	}
	if advance {
		s.Advance = l.advance()
	}
	return s
}

// wrote notes that the state of that time is durable: what inAll and open said then.
func (l *ledger) wrote(inAll, boot time.Duration, open bool) {
	l.everSaved, l.saved, l.savedAt, l.savedOpen = true, inAll, boot, open
}
