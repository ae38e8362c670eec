package guard

import (
	"fmt"
	"slices"
	"time"
)

// try is what became of the attempts with one PIN since it last logged in.
type try struct {
	Tag     uint32    `json:"tag"`
	Last    time.Time `json:"last"`             // when the last attempt was begun, or ended
	Outcome string    `json:"outcome"`          // refused, locked, expired; else ""
	Locked  int       `json:"locked,omitempty"` // attempts in a row that ended so; for expired too
	Unknown int       `json:"unknown,omitempty"`
	Failed  int       `json:"failed,omitempty"` // for another cause
	// Proven: it has logged in to this token.
	Proven bool `json:"proven,omitempty"`
	// Extra are the attempts after the second of unknown outcome, those of the last 24 hours.
	Extra []time.Time `json:"extra,omitempty"`
}

const (
	refused = "refused"
	locked  = "locked"
	expired = "expired"
)

// maxExtra bounds the attempts beyond the second of unknown outcome, within extraWindow.
const maxExtra = 3

const extraWindow = 24 * time.Hour

// extraPauses are before each of them, from the beginning of the attempt before: an outage must not use them up.
var extraPauses = [maxExtra]time.Duration{2 * time.Minute, 10 * time.Minute, time.Hour}

// The pauses double from the first to the last.
const (
	firstLockedPause, lastLockedPause = 30 * time.Second, 10 * time.Minute
	firstFailedPause, lastFailedPause = 2 * time.Second, 30 * time.Second
	failedAtOnce                      = 2
)

// allows returns why no attempt may be made now; nil: one may.
func (t try) allows(token Token, now time.Time) error {
	switch {
	case t.Outcome == refused:
		return fmt.Errorf("%w (refused, at %s)", ErrStands, t.Last.Format(time.RFC3339))
	case t.Outcome == locked && t.rests(now, doubled(firstLockedPause, lastLockedPause, t.Locked-1)):
		return ErrLocked
	case t.Outcome == expired && (token.ToBeChanged || t.rests(now, doubled(firstLockedPause, lastLockedPause, t.Locked-1))):
		return ErrExpired
	}
	if t.Unknown > 0 {
		if err := t.allowsUnknown(token, now); err != nil {
			return err
		}
	}
	if token.Prompts && t.Failed > 0 && t.rests(now, doubled(firstLockedPause, lastLockedPause, t.Failed-1)) {
		return ErrPaused
	}
	if t.Failed > failedAtOnce && t.rests(now, doubled(firstFailedPause, lastFailedPause, t.Failed-failedAtOnce-1)) {
		return ErrPaused
	}
	return nil
}

// allowsUnknown is allows after attempts of unknown outcome.
func (t try) allowsUnknown(token Token, now time.Time) error {
	stands := func(why string) error {
		return fmt.Errorf("%w (outcome unknown, at %s; %s)", ErrStands, t.Last.Format(time.RFC3339), why)
	}
	extra := len(t.recent(now))
	switch {
	case !token.Clean:
		return stands("the token counts a failed login")
	case t.Unknown == 1:
		return nil
	case !t.Proven:
		return stands("it was repeated, and has never logged in to this token")
	case extra >= maxExtra:
		return stands(fmt.Sprintf("it was repeated %d times within 24 hours", maxExtra))
	case t.rests(now, extraPauses[extra]):
		return fmt.Errorf("%w (outcome unknown)", ErrPaused)
	}
	return nil
}

// rests reports whether the pause after the last attempt has not passed. A clock that was set back ends it.
func (t try) rests(now time.Time, pause time.Duration) bool {
	passed := now.Sub(t.Last)
	return passed >= 0 && passed < pause
}

// recent are the extra attempts that count now. A clock that was set back forgets none.
func (t try) recent(now time.Time) []time.Time {
	return slices.DeleteFunc(slices.Clone(t.Extra), func(at time.Time) bool { return now.Sub(at) >= extraWindow })
}

// begun is t while another attempt is under way.
func (t try) begun(now time.Time) try {
	t.Extra = t.recent(now)
	if t.Unknown >= 2 {
		t.Extra = append(t.Extra, now)
	}
	t.Unknown++
	t.Last = now
	return t
}

// ended is t, as it was before the attempt, when the attempt has ended so.
func (t try) ended(outcome Outcome, now time.Time) try {
	if outcome == NotTried {
		return t
	}
	// The extra attempts go on counting: a login that works every other time must not be tried without end.
	t.Last, t.Extra = now, t.begun(now).Extra
	switch outcome {
	case Succeeded:
		t = try{Tag: t.Tag, Last: now, Proven: true, Extra: t.Extra}
	case Refused:
		t = try{Tag: t.Tag, Last: now, Outcome: refused}
	case Locked:
		t.Outcome, t.Locked = locked, t.Locked+1
	case Expired:
		t.Outcome, t.Locked = expired, t.Locked+1
	case Undecided:
		t.Failed++
	}
	return t
}

// doubled is first, doubled n times, and last at most.
func doubled(first, last time.Duration, n int) time.Duration {
	for range n {
		if first >= last {
			break
		}
		first *= 2
	}
	return min(first, last)
}
