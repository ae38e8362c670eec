package kmsplugin

import (
	"cmp"
	"context"
	"fmt"
	"sync/atomic"

	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
	"github.com/hsm-kms/hsm-kms/kmsplugin/hold"
	"github.com/hsm-kms/hsm-kms/kmsplugin/problem"
)

// version is the API version that Status names. It must be the same in every answer (k8s.io/apiserver,
// envelope/kmsv2), and "v2" is what current releases ask for.
const version = "v2"

// The API server's own limits on an Encrypt answer, in bytes (k8s.io/apiserver, envelope/kmsv2/envelope.go).
const (
	maxCiphertext = 1024
	maxKeyID      = 1024
)

// Ring is what the service uses of envelope.Ring, whose documentation has contexts, errors and concurrency.
type Ring interface {
	health.Ring
	Seal(ctx context.Context, id envelope.KeyID, dek []byte) ([]byte, error)
	Open(ctx context.Context, keyID string, envelope []byte) ([]byte, error)
}

// service is the KMS v2 service. Its methods return causes; guard turns them into what a peer may see.
type service struct {
	kmsapi.UnimplementedKeyManagementServiceServer
	ring   Ring
	read   []*health.Reader
	health *health.Health
	hold   *hold.Hold // nil: none
	named  atomic.Pointer[namedKey]
}

// namedKey is the key_id that Status gave last, and with it the one that Encrypt seals under: the API server refuses an
// answer under any other.
type namedKey struct {
	id   envelope.KeyID
	text string
}

// Status answers from the background probe. It takes microseconds, whatever the HSM does.
func (s *service) Status(ctx context.Context, _ *kmsapi.StatusRequest) (*kmsapi.StatusResponse, error) {
	report := s.health.Report()
	tellOthers(ctx, s.health.Pending(), s.health.Retained())
	tellReadRings(ctx, s.read)
	if s.hold != nil {
		sendHold(ctx, s.hold.State())
	}
	if report.Key.IsZero() {
		return nil, report.Problem
	}
	named := s.named.Load()
	if named == nil || named.id != report.Key {
		named = &namedKey{id: report.Key, text: report.Key.String()}
		s.named.Store(named)
	}
	text := named.text
	if s.hold != nil && s.hold.Named() {
		text = named.id.HoldString()
	}
	return &kmsapi.StatusResponse{Version: version, Healthz: problem.Of(report.Problem).Words, KeyId: text}, nil
}

// Encrypt seals one DEK, and wipes it in the request.
func (s *service) Encrypt(ctx context.Context, req *kmsapi.EncryptRequest) (*kmsapi.EncryptResponse, error) {
	defer clear(req.Plaintext)
	if n := len(req.Plaintext); n < 1 || n > envelope.MaxDEK {
		return nil, fmt.Errorf("%w: it has %d", envelope.ErrDEKSize, n)
	}
	named, err := s.writeKey()
	if err != nil {
		return nil, err
	}
	ciphertext, keyID, err := s.seal(ctx, named, req.Plaintext)
	if problem.IsUnknownKey(err) {
		// Status named it, so it is not the caller's key_id that is wrong.
		return nil, fmt.Errorf("%w: %w", envelope.ErrKeyMissing, err)
	}
	if err != nil {
		return nil, err
	}
	if n := len(ciphertext); n < 1 || n > maxCiphertext || len(keyID) > maxKeyID {
		return nil, fmt.Errorf("sealing gave %d bytes under a key_id of %d: the API server takes %d and %d", n, len(keyID), maxCiphertext, maxKeyID)
	}
	return &kmsapi.EncryptResponse{Ciphertext: ciphertext, KeyId: keyID}, nil
}

// seal seals with the HSM or, where there is one, with the hold, and returns the key_id too.
func (s *service) seal(ctx context.Context, named *namedKey, dek []byte) (ciphertext []byte, keyID string, err error) {
	if s.hold == nil {
		ciphertext, err = s.ring.Seal(ctx, named.id, dek)
		return ciphertext, named.text, err
	}
	answer, err := s.hold.Seal(ctx, named.id, dek)
	noteOnHold(ctx, answer.OnHold)
	return answer.Bytes, answer.KeyID, err
}

// open opens with the HSM or, where there is one, with the hold.
func (s *service) open(ctx context.Context, keyID string, ciphertext []byte) ([]byte, error) {
	if s.hold == nil {
		return s.ring.Open(ctx, keyID, ciphertext)
	}
	answer, err := s.hold.Open(ctx, keyID, ciphertext)
	noteOnHold(ctx, answer.OnHold)
	return answer.Bytes, err
}

// onHoldKey is of the context's value, a *bool, by which a request reports that the hold answered it.
type onHoldKey struct{}

func noteOnHold(ctx context.Context, onHold bool) {
	if told, ok := ctx.Value(onHoldKey{}).(*bool); ok {
		*told = onHold
	}
}

// viewFor is the ring that a key_id names, or, if there is none, the one that is written under.
func (s *service) viewFor(keyID string) envelope.View {
	if id, _, err := envelope.ParseUsedKeyID(keyID); err == nil {
		for _, reader := range s.read {
			if reader.Name() == id.Ring {
				return reader.View()
			}
		}
	}
	return s.ring.Advance()
}

// writeKey is the key that Status gave last, or, before any Status, the current one, if it is proven. While Status is an
// error because what is written now might never be read again, there is none.
func (s *service) writeKey() (*namedKey, error) {
	report := s.health.Report()
	if report.Key.IsZero() && problem.Of(report.Problem).Stops {
		return nil, report.Problem
	}
	if named := s.named.Load(); named != nil {
		return named, nil
	}
	view := s.ring.Advance()
	switch {
	case view.Current == nil:
		return nil, cmp.Or(view.Problem, envelope.ErrNotProven)
	case !view.Current.Works && report.Problem != nil:
		return nil, report.Problem
	case !view.Current.Works:
		return nil, envelope.ErrNotProven
	}
	named := &namedKey{id: view.Current.ID, text: view.Current.ID.String()}
	if !s.named.CompareAndSwap(nil, named) {
		named = s.named.Load() // a Status came in between, and its word counts
	}
	return named, nil
}

// Decrypt opens one envelope. We give no annotations, so a request with some is none of ours: they are stored beside
// the envelope, and one that they had been added to was changed.
func (s *service) Decrypt(ctx context.Context, req *kmsapi.DecryptRequest) (*kmsapi.DecryptResponse, error) {
	if len(req.Annotations) > 0 {
		return nil, fmt.Errorf("%w: it comes with %d annotations, and this plugin gives none", envelope.ErrMalformed, len(req.Annotations))
	}
	dek, err := s.open(ctx, req.KeyId, req.Ciphertext)
	if err != nil {
		return nil, err
	}
	return &kmsapi.DecryptResponse{Plaintext: dek}, nil
}
