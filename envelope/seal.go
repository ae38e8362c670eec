package envelope

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
)

// ErrDEKSize: the plaintext is empty or longer than MaxDEK.
var ErrDEKSize = fmt.Errorf("%w: plaintext must have 1 to %d bytes", ErrMalformed, MaxDEK)

// SealDEK wraps dek under the key id on the token: one HSM operation. It returns the envelope's bytes.
// dek is not kept. Errors: ErrDEKSize, ErrSelfTest when the token's answer has a wrong length or a nonce that it makes is
// of no use, and those of Token.
func SealDEK(ctx context.Context, token Token, profile Profile, id KeyID, dek []byte) ([]byte, error) {
	switch {
	case profile == AESGCMHSMIV:
		return sealHSMIV(ctx, token, id, dek)
	case profile == HMACKDF && fips140.Enabled():
		return sealRandomNonce(ctx, token, id, dek)
	}
	unique := make([]byte, profile.uniqueSize())
	fillUnique(profile, unique)
	return sealWith(ctx, token, profile, id, unique, dek)
}

// fillUnique draws a nonce or salt. A reserved nonce is drawn again: a second message under that of the
// fingerprint, or of a hold key, would give its key stream away. crypto/rand.Read never fails.
func fillUnique(profile Profile, unique []byte) {
	_, _ = rand.Read(unique)
	for profile == AESGCM && isReserved(unique) {
		_, _ = rand.Read(unique)
	}
}

// nonceTries is how often a seal is repeated because of the nonce that the token made for it.
const nonceTries = 3

// sealHSMIV seals under a nonce of the token's own. A nonce of zeros is that of a token that makes none; what was sealed
// under it, or under a reserved one, is thrown away.
func sealHSMIV(ctx context.Context, token Token, id KeyID, dek []byte) ([]byte, error) {
	if len(dek) < 1 || len(dek) > MaxDEK {
		return nil, ErrDEKSize
	}
	associated := func(nonceSize int) []byte { return associatedDataHSMIV(nonceSize, id) }
	for range nonceTries {
		nonce, sealed, err := token.EncryptOwnNonce(ctx, id, associated, dek)
		switch {
		case err != nil:
			return nil, err
		case len(nonce) != NonceSize && len(nonce) != LongNonceSize:
			return nil, fmt.Errorf("%w: it made a nonce of %d bytes", ErrSelfTest, len(nonce))
		case len(sealed) != len(dek)+TagSize:
			return nil, fmt.Errorf("%w: sealing %d bytes gave %d", ErrSelfTest, len(dek), len(sealed))
		case !UsableNonce(nonce):
			continue
		}
		return Envelope{Profile: AESGCMHSMIV, Unique: nonce, Sealed: sealed}.Marshal(), nil
	}
	return nil, fmt.Errorf("%w: it made no nonce that can be used in %d attempts", ErrSelfTest, nonceTries)
}

func sealWith(ctx context.Context, token Token, profile Profile, id KeyID, unique, dek []byte) ([]byte, error) {
	if len(dek) < 1 || len(dek) > MaxDEK {
		return nil, ErrDEKSize
	}
	associated := associatedData(profile, unique, id)
	var sealed []byte
	var err error
	switch profile {
	case AESGCM:
		sealed, err = token.EncryptGCM(ctx, id, (*[NonceSize]byte)(unique), associated, dek)
	case HMACKDF:
		err = withOneTimeKey(ctx, token, id, kdfInput(profile, unique), cipher.NewGCM, func(aead cipher.AEAD) error {
			sealed = aead.Seal(nil, make([]byte, NonceSize), dek, associated)
			return nil
		})
	default:
		err = fmt.Errorf("%w: %s is not known", ErrMalformed, profile)
	}
	if err != nil {
		return nil, err
	}
	if len(sealed) != len(dek)+TagSize {
		return nil, fmt.Errorf("%w: sealing %d bytes gave %d", ErrSelfTest, len(dek), len(sealed))
	}
	return Envelope{Profile: profile, Unique: unique, Sealed: sealed}.Marshal(), nil
}

// sealRandomNonce is hmac-kdf as Go's FIPS 140-3 module approves it: Go makes a random nonce and writes it before the
// ciphertext.
func sealRandomNonce(ctx context.Context, token Token, id KeyID, dek []byte) ([]byte, error) {
	if len(dek) < 1 || len(dek) > MaxDEK {
		return nil, ErrDEKSize
	}
	salt := make([]byte, SaltSize, SaltSize+NonceSize)
	_, _ = rand.Read(salt)
	var sealed []byte
	err := withOneTimeKey(ctx, token, id, kdfInput(HMACKDFNonce, salt), cipher.NewGCMWithRandomNonce, func(aead cipher.AEAD) error {
		sealed = aead.Seal(nil, nil, dek, associatedData(HMACKDFNonce, salt, id))
		return nil
	})
	if err != nil {
		return nil, err
	}
	return Envelope{Profile: HMACKDFNonce, Unique: append(salt, sealed[:NonceSize]...), Sealed: sealed[NonceSize:]}.Marshal(), nil
}

// OpenDEK unwraps an envelope that names the key id: one HSM operation. The caller wipes the DEK. Errors:
// ErrMalformed (also when the envelope is of a profile that the ring does not open), ErrUnauthentic, and those of
// Token.
func OpenDEK(ctx context.Context, token Token, profile Profile, id KeyID, envelope []byte) ([]byte, error) {
	e, err := Parse(envelope)
	if err != nil {
		return nil, err
	}
	if !profile.opens(e.Profile) {
		return nil, fmt.Errorf("%w: its profile is %s, the ring's is %s", ErrMalformed, e.Profile, profile)
	}
	associated := associatedData(e.Profile, e.Unique, id)
	var dek []byte
	switch e.Profile {
	case AESGCM, AESGCMHSMIV:
		dek, err = token.DecryptGCM(ctx, id, e.Unique, associated, e.Sealed)
	case HMACKDF, HMACKDFNonce:
		salt, nonce := e.Unique[:SaltSize], e.Unique[SaltSize:]
		if e.Profile == HMACKDF {
			nonce = make([]byte, NonceSize)
		}
		var key [MACSize]byte
		if key, err = token.MAC(ctx, id, kdfInput(e.Profile, salt)); err == nil {
			dek, err = openOneTime(&key, nonce, associated, e.Sealed)
		}
	case Hold:
		var key HoldKey
		defer clear(key[:])
		if key, err = deriveHoldKey(ctx, token, profile, id, e.Day()); err == nil {
			dek, err = openHold(&key, id, e)
		}
	}
	if err != nil {
		return nil, err
	}
	if len(dek) != len(e.Sealed)-TagSize {
		clear(dek)
		return nil, fmt.Errorf("%w: opening %d bytes gave %d", ErrSelfTest, len(e.Sealed), len(dek))
	}
	return dek, nil
}

// openOneTime opens an envelope under its one-time key, and wipes that. NewGCMWithRandomNonce takes the nonce from before the
// ciphertext. Where FIPS is enforced NewGCM does not even open.
func openOneTime(key *[MACSize]byte, nonce, associated, sealed []byte) (dek []byte, err error) {
	err = underOneTimeKey(key, cipher.NewGCMWithRandomNonce, func(aead cipher.AEAD) error {
		if dek, err = aead.Open(nil, nil, slices.Concat(nonce, sealed), associated); err != nil {
			return fmt.Errorf("opening under the derived key: %w", ErrUnauthentic)
		}
		return nil
	})
	return dek, err
}

// withOneTimeKey derives the key of one envelope in the token from input, for underOneTimeKey.
func withOneTimeKey(ctx context.Context, token Token, id KeyID, input []byte, mode func(cipher.Block) (cipher.AEAD, error), use func(cipher.AEAD) error) error {
	key, err := token.MAC(ctx, id, input)
	if err != nil {
		return err
	}
	return underOneTimeKey(&key, mode, use)
}

// underOneTimeKey makes an AEAD of the key with mode, and wipes the key after use. The key seals one message only.
func underOneTimeKey(key *[MACSize]byte, mode func(cipher.Block) (cipher.AEAD, error), use func(cipher.AEAD) error) error {
	defer clear(key[:])
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return fmt.Errorf("making the one-time cipher: %w", err)
	}
	aead, err := mode(block)
	if err != nil {
		return fmt.Errorf("making the one-time cipher: %w", err)
	}
	return use(aead)
}

// isHSMAway reports whether an error says nothing of a key: the HSM, or the time for it, was not to be had.
func isHSMAway(err error) bool {
	if errors.Is(err, ErrKeySuspended) {
		return false
	}
	return errors.Is(err, ErrUnavailable) || errors.Is(err, ErrBusy) || IsPIN(err) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
