package problem

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// When several tokens failed in several ways, what a person must do comes first, and an HSM that is away comes before
// what another one does not know.
func TestJoined(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		errs []error
		want error
	}{
		{[]error{envelope.ErrUnavailable, envelope.ErrSelfTest}, envelope.ErrSelfTest},
		{[]error{envelope.ErrUnavailable, envelope.ErrKeyMissing}, envelope.ErrKeyMissing},
		{[]error{envelope.ErrUnavailable, envelope.ErrPINRefused}, envelope.ErrPINRefused},
		{[]error{envelope.ErrUnknownKey, envelope.ErrUnavailable}, envelope.ErrUnavailable},
		{[]error{envelope.ErrNotProven, envelope.ErrUnavailable}, envelope.ErrUnavailable},
		{[]error{envelope.ErrUnavailable, context.DeadlineExceeded}, context.DeadlineExceeded},
		{[]error{ErrRecord, envelope.ErrUnavailable}, ErrRecord},
	} {
		got, want := Of(fmt.Errorf("asking: %w", errors.Join(c.errs...))), Of(c.want)
		if got.Code != want.Code || got.Words != want.Words || got.Stops != want.Stops {
			t.Errorf("%v: %v %q, want %v %q", c.errs, got.Code, got.Words, want.Code, want.Words)
		}
	}
}

func TestStops(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]bool{
		envelope.ErrSelfTest: true, envelope.ErrKeyMissing: true, envelope.ErrAmbiguous: true, envelope.ErrRingEmpty: true,
		envelope.ErrUnavailable: false, envelope.ErrPINRefused: false, envelope.ErrBusy: false, ErrStale: false, ErrUnchecked: false,
		context.DeadlineExceeded: false, errors.New("another"): false,
	} {
		if got := Of(err).Stops; got != want {
			t.Errorf("%v: stops = %v", err, got)
		}
	}
}

func TestNoError(t *testing.T) {
	t.Parallel()
	if c := Of(nil); c.Code != codes.OK || c.Words != "ok" || c.Error() != nil {
		t.Errorf("%+v", c)
	}
}

func TestTheErrorsOwnHintWins(t *testing.T) {
	t.Parallel()
	if got := Of(hint.Wrap(envelope.ErrPINRefused, "chmod it")).Hint; got != "chmod it" {
		t.Errorf("hint = %q", got)
	}
	if Of(envelope.ErrPINRefused).Hint == "" {
		t.Error("no hint of its own")
	}
}
