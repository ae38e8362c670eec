package audit

import (
	"context"
	"errors"
	"time"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// recordWait is how long a record waits for the lock although its context has ended: the time of a request that ran out in
// the HSM must not cost its record.
const recordWait = time.Second

// errBusy: an earlier record, or a flush, keeps the lock: its disk hangs.
var errBusy = hint.Wrap(errors.New("the audit trail still waits for its disk with an earlier record"), "check whether the disk of audit.path hangs")

// contextLock is a mutex for which a context can be waited with.
type contextLock chan struct{}

func newLock() contextLock { return make(contextLock, 1) }

// Lock waits for the lock without an end.
func (l contextLock) Lock() { l <- struct{}{} }

// Unlock gives it up.
func (l contextLock) Unlock() { <-l }

// lockWithin waits until ctx ends, and for atLeast.
func (l contextLock) lockWithin(ctx context.Context, atLeast time.Duration) error {
	select {
	case l <- struct{}{}:
		return nil
	default:
	}
	timer := time.NewTimer(atLeast)
	defer timer.Stop()
	select {
	case l <- struct{}{}:
		return nil
	case <-timer.C:
	}
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return errBusy
	}
}
