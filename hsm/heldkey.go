package hsm

import (
	"bytes"
	"crypto/hmac"
	"errors"
	"fmt"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// heldKey is one object of the ring and the handle that this generation knows it by.
type heldKey struct {
	handle p11.Object
	key    envelope.Key
	// proof is what only this key gives: the fingerprint's ciphertext and tag, its two blocks, or its HMAC. Never published.
	proof []byte
	// sample serves to tell a token that cannot use the key from a ciphertext that is not authentic. nil: there is none,
	// because the profile needs none, or because the token seals no more with the key.
	sample *sample
	// failed is why the token could not use the key when it was read; proof and sample are an earlier connection's. nil: it could.
	failed error
}

// sample is something that a key has sealed.
type sample struct{ nonce, associated, plaintext, sealed []byte }

// refuse keeps a key from being served. Without its fingerprint nobody takes it for another one, or for one that is gone.
func (k *heldKey) refuse(format string, args ...any) {
	k.key.Refused, k.key.ID.Fingerprint = fmt.Sprintf(format, args...), [envelope.FingerprintSize]byte{}
}

// keyCannot reports whether a return value is about this key or mechanism, and not about the token's health.
func keyCannot(rv p11.RV) bool {
	switch rv {
	case pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, pkcs11.CKR_KEY_TYPE_INCONSISTENT, pkcs11.CKR_KEY_SIZE_RANGE,
		pkcs11.CKR_MECHANISM_INVALID, pkcs11.CKR_MECHANISM_PARAM_INVALID, pkcs11.CKR_FUNCTION_NOT_SUPPORTED:
		return true
	}
	return false
}

// fingerprint makes the proof and the fingerprint: one operation.
func (k *heldKey) fingerprint(api p11.API, s p11.Session, profile envelope.Profile) (proof []byte, fp [envelope.FingerprintSize]byte, err error) {
	if profile == envelope.HMACKDF {
		proof, err = api.HMAC(time.Time{}, s, k.handle, envelope.FingerprintMessage())
		if err != nil {
			return nil, fp, err
		}
		if len(proof) != envelope.MACSize {
			return nil, fp, fmt.Errorf("%w: an HMAC of %d bytes", envelope.ErrSelfTest, len(proof))
		}
		fp, err = envelope.FingerprintMAC([envelope.MACSize]byte(proof))
		return proof, fp, err
	}
	if profile == envelope.AESGCMHSMIV {
		proof, err = api.EncryptECB(time.Time{}, s, k.handle, envelope.FingerprintBlocks())
		if err != nil {
			return nil, fp, fmt.Errorf("CKM_AES_ECB, by which this profile takes the fingerprint: %w", err)
		}
		fp, err = envelope.FingerprintECB(proof)
		return proof, fp, err
	}
	probe := envelope.NewFingerprintProbe()
	proof, err = api.EncryptGCM(time.Time{}, s, k.handle, probe.Nonce[:], probe.Associated, probe.Plaintext)
	if err != nil {
		return nil, fp, err
	}
	fp, err = envelope.FingerprintGCM(proof)
	return proof, fp, err
}

// errWrongKey: the handle does not name the key it named. It must never be sealed with again.
var errWrongKey = errors.New("the key behind the handle is another one")

// check uses the key in every direction that its profile has, and compares with what it gave before.
func (k *heldKey) check(api p11.API, s p11.Session, profile envelope.Profile) error {
	proof, _, err := k.fingerprint(api, s, profile)
	if err != nil {
		return err
	}
	if !hmac.Equal(proof, k.proof) {
		return errWrongKey
	}
	if profile == envelope.HMACKDF {
		return nil
	}
	return k.reopen(api, s)
}

// reopen decrypts the sample of an AES key: one operation. Without a sample it compares the two blocks.
func (k *heldKey) reopen(api p11.API, s p11.Session) error {
	if k.sample == nil {
		proof, _, err := k.fingerprint(api, s, envelope.AESGCMHSMIV)
		if err == nil && !hmac.Equal(proof, k.proof) {
			err = errWrongKey
		}
		return err
	}
	out, err := api.DecryptGCM(time.Time{}, s, k.handle, k.sample.nonce, k.sample.associated, k.sample.sealed)
	if err != nil {
		return err
	}
	if !bytes.Equal(out, k.sample.plaintext) {
		return errWrongKey
	}
	return nil
}
