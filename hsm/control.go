package hsm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// onControl runs f, a sequence of C calls outside the working sessions, on a goroutine of its own and waits
// until it ends, ctx ends, or one call of it makes no progress for the call time-out. An f that was abandoned
// so goes on when its call returns: it must publish what it makes by itself. done is called when f has ended,
// however late. One f at a time: while one is stuck, no other begins, so hanging threads stay few.
func (t *Token) onControl(ctx context.Context, what string, done func(), f func(api p11.API, c *call) error) error {
	select {
	case t.control <- struct{}{}:
	case <-ctx.Done():
		done()
		return ctx.Err()
	case <-time.After(t.cfg.CallTimeout):
		done()
		return fmt.Errorf("%s: %w", what, errAbandoned)
	}
	return t.sequence(ctx, what, func() {
		<-t.control
		done()
	}, f)
}

// sequence is onControl without the control session: f must open its own.
func (t *Token) sequence(ctx context.Context, what string, done func(), f func(api p11.API, c *call) error) error {
	c, err := t.mod.flight.begin(ctx, t.cfg.Name, what)
	if err != nil {
		done()
		return err
	}
	api := t.mod.library.With(func(function string, rv p11.RV, took time.Duration) {
		t.hook(function, rv, took)
		t.mod.flight.progress(c, what+", after "+function)
	}, &t.sessions)
	result := make(chan error, 1)
	go func() {
		var err error
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("%s panicked: %v", what, p)
			}
			t.mod.flight.end(c)
			done()
			result <- err
		}()
		err = f(api, c)
	}()
	return t.await(ctx, c, what, result)
}

// await waits for a sequence whose every call has the call time-out for itself.
func (t *Token) await(ctx context.Context, c *call, what string, result <-chan error) error {
	for {
		left := t.cfg.CallTimeout - t.mod.flight.sinceProgress(c)
		if left <= 0 {
			return fmt.Errorf("%s: %w (callTimeout is %s)", what, errAbandoned, t.cfg.CallTimeout)
		}
		timer := time.NewTimer(left)
		select {
		case err := <-result:
			timer.Stop()
			return err
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// asUnavailable gives an error of this package the sentinel that the rest of the program knows.
func asUnavailable(err error) error {
	for _, known := range []error{
		envelope.ErrPINRefused, envelope.ErrSelfTest, envelope.ErrAmbiguous, envelope.ErrUnavailable,
		context.Canceled, context.DeadlineExceeded,
	} {
		if errors.Is(err, known) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", envelope.ErrUnavailable, err)
}
