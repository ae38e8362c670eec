package evidence

import (
	"context"
	"crypto/aes"
	"errors"
	"fmt"
	"time"

	"k8s.io/apiserver/pkg/storage/value"
	transform "k8s.io/apiserver/pkg/storage/value/encrypt/aes"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/envelope/stored"
)

// Opener opens wrapped DEKs: an *envelope.Ring. It is called from many goroutines. The caller wipes the DEK.
type Opener interface {
	Open(ctx context.Context, keyID string, wrapped []byte) ([]byte, error)
}

// decrypt opens an object's data under its DEK with the API server's own transformers and returns the plaintext, which
// the caller wipes. A transformer is made for each object: one of source type Seed keeps a derived key for every object
// that it has seen for ten minutes, which over a million objects is memory without bounds.
func decrypt(ctx context.Context, dek []byte, object *stored.Object, key []byte) ([]byte, error) {
	transformer, err := transformerOf(dek, object.Type)
	if err != nil {
		return nil, fmt.Errorf("using the DEK: %w", err)
	}
	plain, _, err := transformer.TransformFromStorage(ctx, object.Data, value.DefaultContext(key))
	if err != nil {
		return nil, fmt.Errorf("the object is not authentic under its DEK and its etcd key: %w", err)
	}
	return plain, nil
}

func transformerOf(dek []byte, kind stored.SourceType) (value.Transformer, error) {
	if kind == stored.Seed {
		return transform.NewHKDFExtendedNonceGCMTransformer(dek)
	}
	block, err := aes.NewCipher(dek)
	if err != nil {
		return nil, err
	}
	return transform.NewGCMTransformer(block)
}

// The HSM may be out of reach for a moment, or busy: that says nothing about a DEK.
const (
	openAttempts = 6
	openPause    = 250 * time.Millisecond // doubled at each further attempt
)

// open asks the HSM for a DEK, again for a while when it cannot answer just now. fatal tells an error of the HSM, which
// must end the work, from one of this DEK.
func open(ctx context.Context, opener Opener, object *stored.Object) (dek []byte, fatal bool, err error) {
	if len(object.Annotations) > 0 { // the plugin refuses them, and so the API server could not read this object
		return nil, false, fmt.Errorf("%w: it comes with %d annotations, and the plugin gives none", envelope.ErrMalformed, len(object.Annotations))
	}
	pause := openPause
	for attempt := 1; ; attempt++ {
		dek, err = opener.Open(ctx, object.KeyID, object.DEKSource)
		passing := errors.Is(err, envelope.ErrUnavailable) || errors.Is(err, envelope.ErrBusy) || errors.Is(err, context.DeadlineExceeded)
		switch {
		case err == nil:
			return dek, false, nil
		case ctx.Err() != nil:
			return nil, true, context.Cause(ctx)
		case errors.Is(err, envelope.ErrPINRefused), passing && attempt == openAttempts:
			return nil, true, fmt.Errorf("opening a DEK: %w", err)
		case !passing:
			return nil, false, err
		}
		select {
		case <-ctx.Done():
			return nil, true, context.Cause(ctx)
		case <-time.After(pause):
			pause *= 2
		}
	}
}
