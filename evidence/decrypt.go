package evidence

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/envelope/stored"
)

// Opener opens wrapped DEKs: an *envelope.Ring. It is called from many goroutines. The caller wipes the DEK.
type Opener interface {
	Open(ctx context.Context, keyID string, wrapped []byte) ([]byte, error)
}

// Of source type Seed, an object's data begins with what its own key is derived with (k8s.io/apiserver v0.37.2,
// pkg/storage/value/encrypt/aes/aes_extended_nonce.go).
const (
	seedSize = 32
	infoSize = 32
	keySize  = 32
)

// decrypt opens an object's data under its DEK, as the API server's transformers do, and returns the plaintext, which the
// caller wipes. These are not used themselves: they make their AES-GCM with cipher.NewGCM, which fails where FIPS is enforced
// (GODEBUG=fips140=only), even if only to open. Only data that was changed is called not authentic: a failure of another
// kind says nothing about the object.
func decrypt(dek []byte, object *stored.Object, key []byte) ([]byte, error) {
	const changed = "the object is not authentic under its DEK and its etcd key: %s"
	data := object.Data
	if object.Type == stored.Seed {
		if len(dek) < seedSize {
			return nil, fmt.Errorf("using the DEK: a seed of %d bytes, %d are needed", len(dek), seedSize)
		}
		if len(data) < infoSize {
			return nil, fmt.Errorf(changed, "it is too short")
		}
		var err error
		if dek, err = hkdf.Expand(sha256.New, dek, string(data[:infoSize]), keySize); err != nil {
			return nil, fmt.Errorf("using the DEK: %w", err)
		}
		defer clear(dek)
		data = data[infoSize:]
	}
	block, err := aes.NewCipher(dek)
	if err != nil {
		return nil, fmt.Errorf("using the DEK: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block) // it takes the nonce from the first 12 bytes, where the API server has it
	if err != nil {
		return nil, fmt.Errorf("using the DEK: %w", err)
	}
	plain, err := aead.Open(nil, nil, data, key)
	if err != nil {
		return nil, fmt.Errorf(changed, err)
	}
	return plain, nil
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
		case envelope.IsPIN(err), passing && attempt == openAttempts:
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
