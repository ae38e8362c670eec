package hsm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// onAdmin makes f's calls, a sequence on the admin session of gen. Each call has the call time-out for itself, and
// all end with ctx. One f at a time: while a call of one is overdue, no other begins.
func (t *Token) onAdmin(ctx context.Context, what string, gen *generation, f func(api p11.API) error) error {
	select {
	case t.admin <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(t.cfg.CallTimeout):
		return fmt.Errorf("%s: %w", what, errAbandoned)
	}
	err := t.sequence(ctx, what, gen, f)
	if overdue, ok := errors.AsType[*p11.Overdue](err); ok {
		go func() {
			<-overdue.Returned
			<-t.admin
		}()
		return err
	}
	<-t.admin
	return err
}

// sequence is onAdmin without the admin session: f opens its own.
func (t *Token) sequence(ctx context.Context, what string, gen *generation, f func(api p11.API) error) error {
	if gen.ended() {
		return errStale
	}
	err := f(gen.worker.For(ctx, t.cfg.CallTimeout))
	if errors.Is(err, p11.ErrOverdue) {
		return fmt.Errorf("%s: %w (callTimeout is %s)", what, err, t.cfg.CallTimeout)
	}
	return err
}

// asUnavailable gives an error of this package the sentinel that the rest of the program knows.
func asUnavailable(err error) error {
	for _, known := range []error{
		envelope.ErrPINRefused, envelope.ErrPINLocked, envelope.ErrPINExpired, envelope.ErrSelfTest, envelope.ErrAmbiguous, envelope.ErrUnavailable,
		context.Canceled, context.DeadlineExceeded,
	} {
		if errors.Is(err, known) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", envelope.ErrUnavailable, err)
}

// ranOutOfTime reports whether an error says only that somebody ran out of time.
func ranOutOfTime(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errAbandoned)
}
