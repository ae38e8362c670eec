package envelope

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
)

// fingerprintDomain separates the fingerprint from everything else that is done with a key. It is also,
// being 12 bytes long, the GCM nonce N under which AES keys are fingerprinted, and N is used for nothing
// else: a second message under it would give both away (SP 800-38D, section 8).
const fingerprintDomain = "hsm-kms/fp/1"

// FingerprintProbe is the one fixed AES-GCM encryption by which an AES key shows which key it is: 32
// zero bytes under the nonce N. Its ciphertext is E(N|00000002) | E(N|00000003), two AES blocks that only
// this key gives. (AES-ECB of a zero block would do as well and must not be used: it is the GCM hash key.)
type FingerprintProbe struct {
	Nonce      [NonceSize]byte
	Associated []byte // does not enter the ciphertext; not empty, because some tokens abort on none
	Plaintext  []byte
}

// NewFingerprintProbe returns the probe.
func NewFingerprintProbe() FingerprintProbe {
	return FingerprintProbe{
		Nonce:      [NonceSize]byte([]byte(fingerprintDomain)),
		Associated: []byte(fingerprintDomain),
		Plaintext:  make([]byte, 32),
	}
}

// FingerprintGCM makes the fingerprint of an AES key from what the probe's encryption gave (ciphertext
// and tag; the tag is dropped). The raw value must not be published: it is a piece of key stream.
func FingerprintGCM(sealed []byte) ([FingerprintSize]byte, error) {
	if len(sealed) != 32+TagSize {
		return [FingerprintSize]byte{}, fmt.Errorf("%w: the fingerprint's encryption gave %d bytes, not %d", ErrSelfTest, len(sealed), 32+TagSize)
	}
	if bytes.Equal(sealed[:32], make([]byte, 32)) {
		return [FingerprintSize]byte{}, fmt.Errorf("%w: the token returned the plaintext as ciphertext", ErrSelfTest)
	}
	return fingerprintOf(sealed[:32]), nil
}

func fingerprintOf(blocks []byte) [FingerprintSize]byte {
	sum := sha256.Sum256(append([]byte(fingerprintDomain), blocks...))
	return [FingerprintSize]byte(sum[:FingerprintSize])
}

// FingerprintBlocks are the two counter blocks of the probe, N|00000002 and N|00000003. On a token that takes no nonce from
// us, AES-ECB of them gives what the probe's ciphertext is elsewhere.
func FingerprintBlocks() []byte {
	return []byte(fingerprintDomain + "\x00\x00\x00\x02" + fingerprintDomain + "\x00\x00\x00\x03")
}

// FingerprintECB makes the fingerprint of an AES key from AES-ECB of FingerprintBlocks: the same as FingerprintGCM. The raw
// value must not be published either.
func FingerprintECB(encrypted []byte) ([FingerprintSize]byte, error) {
	if len(encrypted) != 32 {
		return [FingerprintSize]byte{}, fmt.Errorf("%w: the fingerprint's encryption gave %d bytes, not 32", ErrSelfTest, len(encrypted))
	}
	if bytes.Equal(encrypted, FingerprintBlocks()) {
		return [FingerprintSize]byte{}, fmt.Errorf("%w: the token returned the plaintext as ciphertext", ErrSelfTest)
	}
	return fingerprintOf(encrypted), nil
}

// checkFingerprint reports ErrSelfTest when the token uses another key than the one that id names.
func checkFingerprint(ctx context.Context, token Token, profile Profile, id KeyID) error {
	var fp [FingerprintSize]byte
	var raw []byte
	var err error
	switch profile {
	case HMACKDF:
		var mac [MACSize]byte
		if mac, err = token.MAC(ctx, id, FingerprintMessage()); err == nil {
			fp, err = FingerprintMAC(mac)
		}
	case AESGCMHSMIV:
		if raw, err = token.EncryptBlocks(ctx, id, FingerprintBlocks()); err == nil {
			fp, err = FingerprintECB(raw)
		}
	default:
		probe := NewFingerprintProbe()
		if raw, err = token.EncryptGCM(ctx, id, &probe.Nonce, probe.Associated, probe.Plaintext); err == nil {
			fp, err = FingerprintGCM(raw)
		}
	}
	clear(raw)
	if err == nil && fp != id.Fingerprint {
		err = fmt.Errorf("%w: it uses another key than %s", ErrSelfTest, id)
	}
	return err
}

// FingerprintMessage is what an HMAC key authenticates to show which key it is. No input of the key
// derivation begins with it, nor it with one of them.
func FingerprintMessage() []byte { return []byte(fingerprintDomain) }

// FingerprintMAC makes the fingerprint of an HMAC key from HMAC(K, FingerprintMessage()).
func FingerprintMAC(mac [MACSize]byte) ([FingerprintSize]byte, error) {
	if hmac.Equal(mac[:], make([]byte, MACSize)) {
		return [FingerprintSize]byte{}, fmt.Errorf("%w: the token returned an HMAC of zeros", ErrSelfTest)
	}
	return [FingerprintSize]byte(mac[:FingerprintSize]), nil
}
