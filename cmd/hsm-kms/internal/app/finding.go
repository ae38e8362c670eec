package app

import (
	"errors"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence/migrate"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// errFinding marks the errors that exit 1: the command could run, and the answer is no.
var errFinding = errors.New("finding")

// Finding makes an error a finding or a refusal: the command could run, and the answer is no. Any other error means that it
// could not run.
func Finding(err error) error { return &findingError{err} }

// IsFinding reports whether an error is a finding or a refusal.
func IsFinding(err error) bool { return errors.Is(err, errFinding) }

type findingError struct{ error }

func (f *findingError) Unwrap() []error { return []error{f.error, errFinding} }

// Hint says what to do about an error: what the place that made it says, or else what its kind asks for.
func Hint(err error) string {
	if advice := hint.Of(err); advice != "" {
		return advice
	}
	for _, known := range []struct {
		err    error
		advice string
	}{
		{envelope.ErrRingEmpty, "make the first key with: hsm-kms keys create"},
		{envelope.ErrAmbiguous, envelope.ConflictHint},
		{migrate.ErrBadAnswer, "check what answers at that address: it may be a proxy or load balancer, not the API server"},
		{envelope.ErrKeyMissing, "restore the key to the HSM from its backup, or point the configuration at the token that holds it"},
	} {
		if errors.Is(err, known.err) {
			return known.advice
		}
	}
	if errors.Is(err, envelope.ErrSelfTest) || errors.Is(err, hsm.ErrTokenAbsent) || errors.Is(err, envelope.ErrUnavailable) || envelope.IsPIN(err) {
		return hsm.HintFor(err) // as the log of serve says it
	}
	return ""
}
