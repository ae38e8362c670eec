package hold

import (
	"context"
	"errors"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/problem"
)

// class is what a failure says of the HSM.
type class int

const (
	answers class = iota // no failure
	// away: the HSM cannot be asked. Time-outs, DEVICE_*, GENERAL_ERROR and FUNCTION_FAILED of every key, a dead worker, no slot.
	away
	// revoked: somebody took the right to use it: the PIN was refused, or has expired.
	revoked
	// broken: it works wrongly.
	broken
	// other: it answers, and a person has to act, or the request is at fault. No reason to answer in its place, and none to wipe.
	other
)

// classOf judges what all tokens said together. What says most about one of them counts: a token that refuses the PIN is no
// outage because another one is away at the same time.
func classOf(err error) class {
	is := func(causes ...error) bool {
		for _, cause := range causes {
			if errors.Is(err, cause) {
				return true
			}
		}
		return false
	}
	switch {
	case err == nil:
		return answers
	case is(envelope.ErrPINRefused, envelope.ErrPINExpired):
		return revoked
	case is(envelope.ErrSelfTest):
		return broken
	case is(envelope.ErrPINLocked, envelope.ErrKeySuspended, envelope.ErrDeadly, envelope.ErrBusy, envelope.ErrAmbiguous, envelope.ErrRingEmpty, envelope.ErrKeyMissing,
		envelope.ErrNonceRepeated, envelope.ErrNonceMemory, envelope.ErrMalformed, envelope.ErrUnauthentic, context.Canceled, problem.ErrPanic):
		return other
	case is(envelope.ErrUnavailable, context.DeadlineExceeded):
		return away
	}
	return other
}

// Rules of the end of a hold.
const (
	goodProbes = 5
	goodWithin = 30 * time.Second
	keysKept   = 32 // the newest keys of each ring: for them hold keys are kept
)

// proof is the last good probe.
type proof struct {
	key envelope.KeyID // zero: there was none
	day envelope.Day
	at  time.Time
}

// machine says when the hold begins and ends. It is plain data: it has no clock, lock, file or HSM. boot is the time since
// boot, now the time of day, which names days and is told to people.
type machine struct {
	ledger  *ledger
	proof   proof
	holding bool
	held    proof     // on hold: the proof that it rests on
	since   time.Time // on hold
	named   bool      // on hold: an Encrypt was answered, and Status names K/hold
	short   bool      // on hold: a Decrypt could not be answered
	good    []time.Duration
	revoked error // the HSM refuses us; until the next good probe
}

// begin begins the hold, which the caller has found to be armed.
func (m *machine) begin(boot time.Duration, now time.Time) {
	m.holding, m.held, m.since, m.named, m.short, m.good = true, m.proof, now, false, false, nil
	m.ledger.begin(boot)
}

func (m *machine) end(boot time.Duration) {
	m.holding = false
	m.ledger.end(boot)
}

// over reports whether the time is used up.
func (m *machine) over(boot time.Duration) bool { return m.ledger.left(boot) == 0 }

// mayAnswer reports whether the hold may answer at this moment.
func (m *machine) mayAnswer(boot time.Duration) bool {
	return m.holding && !m.over(boot) && m.ledger.counted(boot)
}

// probed takes a probe while on hold, and reports whether the hold is to end. well: it was good, and quick.
func (m *machine) probed(well bool, boot time.Duration) (end bool) {
	if !well {
		m.good = nil
		return false
	}
	m.good = append(m.good, boot)
	for boot-m.good[0] > goodWithin {
		m.good = m.good[1:]
	}
	return len(m.good) >= goodProbes
}

// days are those of the hold keys that are kept, around the day of the last proof. A node that had the HSM until now must open
// what another node writes that has been on hold for the whole of limit, under the day of its own last proof; and a node that has
// been on hold for as long, what one that had the HSM until now writes. One more on each side is for clocks and midnight.
func days(proven envelope.Day, limit time.Duration) (first, last envelope.Day) {
	const day = 24 * time.Hour
	around := envelope.Day((limit+day-1)/day) + 1
	return proven - min(around, proven), min(proven+around, envelope.MaxDay)
}
