package kmsplugin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/problem"
)

// Every failure has its code, and its words name no cause.
func TestCodes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		cause error
		code  codes.Code
	}{
		{envelope.ErrMalformed, codes.InvalidArgument},
		{envelope.ErrUnauthentic, codes.InvalidArgument},
		{envelope.ErrUnknownKey, codes.NotFound},
		{envelope.ErrUnavailable, codes.Unavailable},
		{envelope.ErrBusy, codes.ResourceExhausted},
		{envelope.ErrPINRefused, codes.FailedPrecondition},
		{envelope.ErrRingEmpty, codes.FailedPrecondition},
		{envelope.ErrAmbiguous, codes.FailedPrecondition},
		{envelope.ErrKeyMissing, codes.FailedPrecondition},
		{envelope.ErrNotProven, codes.FailedPrecondition},
		{envelope.ErrSelfTest, codes.FailedPrecondition},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
		{errors.New("something else"), codes.Internal},
	} {
		t.Run(c.cause.Error(), func(t *testing.T) {
			t.Parallel()
			ring, id := newRing(t)
			rec := &records{}
			p := run(t, Options{Ring: ring, Recorder: rec})
			const canary = "slot 7, label k8s, /etc/hsm-kms/pin"
			failure := fmt.Errorf("opening on token hsm-a (%s): %w", canary, c.cause)
			ring.set(func(r *fakeRing) {
				r.open = func(context.Context, string, []byte) ([]byte, error) { return nil, failure }
				r.seal = func(context.Context, envelope.KeyID, []byte) ([]byte, error) { return nil, failure }
			})
			cl := client(t, p.path)
			_, decErr := cl.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: []byte("x"), KeyId: id.String()})
			decCode := rec.last().Code
			_, encErr := cl.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte("dek")})
			if status.Code(decErr) != c.code || decCode != c.code {
				t.Errorf("Decrypt: code %v, recorded %v, want %v", status.Code(decErr), decCode, c.code)
			}
			if rec.last().KeyID != id.String() {
				t.Errorf("the failed Encrypt is recorded under key_id %q", rec.last().KeyID)
			}
			want := status.Convert(decErr).Message()
			if c.code == codes.NotFound {
				want = problem.Of(envelope.ErrKeyMissing).Words // for Encrypt, the key that Status named is gone
			}
			if got := status.Convert(encErr).Message(); got != want {
				t.Errorf("Encrypt says %q, want %q", got, want)
			}
			for _, err := range []error{decErr, encErr} {
				for _, word := range []string{"slot", "label", "pin:", "/etc", "hsm-a", "7"} {
					if c.code != codes.NotFound && strings.Contains(status.Convert(err).Message(), word) {
						t.Errorf("the peer is told %q", err)
					}
				}
			}
		})
	}
}

func TestOneTextForMalformedAndUnauthentic(t *testing.T) {
	t.Parallel()
	a, b, c := problem.Of(envelope.ErrMalformed), problem.Of(envelope.ErrUnauthentic), problem.Of(envelope.ErrDEKSize)
	if a.Error().Error() != b.Error().Error() || a.Error().Error() != c.Error().Error() {
		t.Errorf("%v, %v, %v", a.Error(), b.Error(), c.Error())
	}
}

func TestNotFoundNamesTheKeys(t *testing.T) {
	t.Parallel()
	asked := newVersion(t, time.Now())
	other := newVersion(t, time.Now().Add(time.Second))
	conflicting := asked
	conflicting.ID.Fingerprint[0] = 1
	refused := asked
	refused.State = envelope.Refused
	refused.Refused = "it is not CKA_PRIVATE, in slot 7"
	for name, c := range map[string]struct {
		keyID    string
		versions []envelope.Version
		want     []string
	}{
		"other":       {asked.ID.String(), []envelope.Version{other}, []string{asked.ID.String(), "the ring holds " + other.ID.String()}},
		"empty":       {asked.ID.String(), nil, []string{asked.ID.String(), "holds no key"}},
		"conflicting": {asked.ID.String(), []envelope.Version{conflicting, other}, []string{"other key material, " + conflicting.ID.String()}},
		"refused":     {asked.ID.String(), []envelope.Version{other, refused}, []string{"does not serve it"}},
		"not ours":    {"a\nb", []envelope.Version{other}, []string{`"a\nb"`, "not a key_id of this plugin"}},
		"long":        {strings.Repeat("k", 5000), nil, []string{"of 5000 bytes"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			view := envelope.View{Versions: c.versions}
			got := answerTo(problem.Of(envelope.ErrUnknownKey), c.keyID, func(string) envelope.View { return view })
			text := status.Convert(got).Message()
			for _, want := range c.want {
				if !strings.Contains(text, want) {
					t.Errorf("%q does not have %q", text, want)
				}
			}
			if strings.Contains(text, "slot") || len(text) > 4096 {
				t.Errorf("the peer is told %q", text)
			}
		})
	}
}

// An API server gives requests up as it pleases: that is no warning.
func TestCancelledRequestIsNoWarning(t *testing.T) {
	t.Parallel()
	ring, id := newRing(t)
	logs := &logBuffer{}
	p := run(t, Options{Ring: ring, Logger: logs.logger()})
	ctx, cancel := context.WithCancel(t.Context())
	ring.set(func(r *fakeRing) {
		r.open = func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
			cancel()
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	if _, err := client(t, p.path).Decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: []byte("x"), KeyId: id.String()}); status.Code(err) != codes.Canceled {
		t.Errorf("Decrypt: %v", err)
	}
	eventually(t, "the request is in the log", func() bool { return strings.Contains(logs.String(), "request failed") })
	if strings.Contains(logs.String(), "level=WARN") || !strings.Contains(logs.String(), "code=Canceled") {
		t.Errorf("the log:\n%s", logs)
	}
}

// The answer to a Decrypt under K/hold is about K.
func TestAnswersOfHolds(t *testing.T) {
	t.Parallel()
	refused := envelope.KeyID{Ring: "r", Version: "x01"}
	other := envelope.KeyID{Ring: "r", Version: "x01", Fingerprint: [envelope.FingerprintSize]byte{1}}
	view := envelope.View{Versions: []envelope.Version{{Key: envelope.Key{ID: refused}, State: envelope.Refused}}}
	if got := held(refused.HoldString(), view); !strings.Contains(got, "the plugin does not serve it") {
		t.Errorf("a key that is refused: %s", got)
	}
	view.Versions[0].State = envelope.Current
	if got := held(other.HoldString(), view); !strings.Contains(got, "other key material, "+refused.String()) {
		t.Errorf("another key: %s", got)
	}
}
