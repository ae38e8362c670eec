package envelope

import (
	"fmt"
	"slices"
	"strings"
)

// Sizes in bytes. A wrapped DEK must fit the API server's 1 kB for an encrypted DEK source
// (k8s.io/apiserver, envelope/kmsv2); DEKs and seeds have 32 bytes today.
const (
	MaxDEK      = 512
	MaxEnvelope = 1024
	SaltSize    = 32

	headerSize    = 2
	formatVersion = 1
)

// Profile says how a ring's keys wrap a DEK. Its number is the envelope's second byte.
type Profile byte

const (
	// AESGCM: AES-256-GCM in the token, a random 96-bit nonce for each envelope.
	AESGCM Profile = 1
	// HMACKDF: HMAC-SHA-256 in the token derives a one-time key from a random 256-bit salt; AES-256-GCM
	// under it in software. For tokens without AES-GCM.
	HMACKDF Profile = 2
	// AESGCMHSMIV: AES-256-GCM in the token, under a nonce that the token makes: for tokens that take none (AWS CloudHSM,
	// Luna in FIPS mode).
	AESGCMHSMIV Profile = 3
	// Hold is no profile of a ring: envelopes have it that were sealed in an outage hold, without the HSM, under a key that
	// was derived in it. Every ring opens them.
	Hold Profile = 4
	// HMACKDFNonce is no profile of a ring: envelopes of a ring of HMACKDF have it that were sealed with Go's FIPS 140-3
	// module, which approves AES-GCM with random nonces of its own alone. As HMACKDF, and that nonce follows the salt.
	HMACKDFNonce Profile = 5
)

// Profiles are all profiles that a ring can have.
func Profiles() []Profile { return []Profile{AESGCM, HMACKDF, AESGCMHSMIV} }

// String is the profile's name in the configuration.
func (p Profile) String() string {
	switch p {
	case AESGCM:
		return "aes-gcm"
	case HMACKDF:
		return "hmac-kdf"
	case AESGCMHSMIV:
		return "aes-gcm-hsm-iv"
	case Hold:
		return "hold"
	case HMACKDFNonce:
		return "hmac-kdf with a random nonce"
	}
	return fmt.Sprintf("profile %d", byte(p))
}

// ParseProfile is the inverse of Profile.String.
func ParseProfile(name string) (Profile, error) {
	for _, p := range Profiles() {
		if p.String() == name {
			return p, nil
		}
	}
	return 0, fmt.Errorf("unknown profile %q: aes-gcm, hmac-kdf and aes-gcm-hsm-iv are known", name)
}

// UsesAES reports whether the keys of the profile are AES keys for GCM. The two such profiles may follow each other in one
// ring: their keys have the same key_ids, and a ring of either opens envelopes of both.
func (p Profile) UsesAES() bool { return p == AESGCM || p == AESGCMHSMIV }

// opens reports whether a ring of profile p opens envelopes of the other.
func (p Profile) opens(other Profile) bool {
	return p == other || other == Hold || p.UsesAES() && other.UsesAES() || p == HMACKDF && other == HMACKDFNonce
}

// uniqueSize is the length of what makes each envelope of the profile unique, nonce or salt, where the profile fixes it.
func (p Profile) uniqueSize() int {
	switch p {
	case HMACKDF:
		return SaltSize
	case HMACKDFNonce:
		return SaltSize + NonceSize
	case Hold:
		return daySize + SaltSize + NonceSize
	}
	return NonceSize
}

// uniqueOf splits what follows the header into nonce or salt and the rest. nil: it is neither.
func (p Profile) uniqueOf(b []byte) (unique, rest []byte) {
	size := p.uniqueSize()
	if p == AESGCMHSMIV {
		if len(b) == 0 || b[0] != NonceSize && b[0] != LongNonceSize {
			return nil, nil
		}
		size, b = int(b[0]), b[1:]
	}
	if len(b) < size {
		return nil, nil
	}
	return b[:size:size], b[size:]
}

// reservedNonces begin every nonce that is used for something else than an envelope.
const reservedNonces = "hsm-kms/"

// UsableNonce reports whether a nonce that a token made may stand in an envelope.
func UsableNonce(nonce []byte) bool { return !isZero(nonce) && !isReserved(nonce) }

// isReserved reports whether a nonce must not be used, nor opened under.
func isReserved(nonce []byte) bool { return strings.HasPrefix(string(nonce), reservedNonces) }

// isZero reports whether a nonce is what a token leaves that makes none.
func isZero(nonce []byte) bool {
	return !slices.ContainsFunc(nonce, func(b byte) bool { return b != 0 })
}

// Envelope is a wrapped DEK, parsed. Its slices share the memory it was parsed from.
type Envelope struct {
	Profile Profile
	Unique  []byte // the nonce; hmac-kdf: the salt, and HMACKDFNonce: the nonce after it; Hold: the day, the salt and the nonce
	Sealed  []byte // ciphertext, as long as the DEK, and the 16-byte tag
}

// Parse reads an envelope. It accepts exactly what Marshal makes: lengths, version and profile are
// checked before anything else is done with the bytes, and every error wraps ErrMalformed.
func Parse(b []byte) (Envelope, error) {
	if len(b) < headerSize || len(b) > MaxEnvelope {
		return Envelope{}, fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	}
	if b[0] != formatVersion {
		return Envelope{}, fmt.Errorf("%w: format version %d, only %d is known", ErrMalformed, b[0], formatVersion)
	}
	profile := Profile(b[1])
	if !slices.Contains(Profiles(), profile) && profile != HMACKDFNonce && profile != Hold {
		return Envelope{}, fmt.Errorf("%w: %s is not known", ErrMalformed, profile)
	}
	unique, sealed := profile.uniqueOf(b[headerSize:])
	if n := len(sealed) - TagSize; n < 1 || n > MaxDEK {
		return Envelope{}, fmt.Errorf("%w: %d bytes cannot hold a DEK of 1 to %d bytes in %s", ErrMalformed, len(b), MaxDEK, profile)
	}
	e := Envelope{Profile: profile, Unique: unique, Sealed: sealed}
	switch {
	case profile.UsesAES() && isReserved(unique), profile == AESGCMHSMIV && isZero(unique),
		profile == Hold && isReserved(unique[daySize+SaltSize:]):
		return Envelope{}, fmt.Errorf("%w: its nonce is one that no envelope has", ErrMalformed)
	case profile == Hold && e.Day() > MaxDay:
		return Envelope{}, fmt.Errorf("%w: day %d, the last is %d", ErrMalformed, e.Day(), MaxDay)
	}
	return e, nil
}

// Marshal is the inverse of Parse.
func (e Envelope) Marshal() []byte {
	b := make([]byte, 0, headerSize+1+len(e.Unique)+len(e.Sealed))
	b = append(b, formatVersion, byte(e.Profile))
	if e.Profile == AESGCMHSMIV {
		b = append(b, byte(len(e.Unique)))
	}
	b = append(b, e.Unique...)
	return append(b, e.Sealed...)
}

// The domain strings that begin the associated data and the key derivation's input. NUL ends them, so
// that none is the beginning of another.
const (
	associatedDomain = "hsm-kms/envelope/1\x00"
	kdfDomain        = "hsm-kms/kdf/1\x00"
)

// associatedData binds every header field and the key_id. The header fixes the length of the nonce or
// salt, so the key_id is all that follows and no two (header, key_id) give the same bytes.
func associatedData(profile Profile, unique []byte, id KeyID) []byte {
	text := id.String()
	switch profile {
	case AESGCMHSMIV:
		return associatedDataHSMIV(len(unique), id)
	case HMACKDFNonce:
		unique = unique[:SaltSize] // the nonce is not known before Go has sealed; GCM makes the tag with it
	case Hold:
		unique = unique[:daySize+SaltSize] // the same
		text = id.HoldString()
	}
	b := make([]byte, 0, len(associatedDomain)+headerSize+len(unique)+len(text))
	b = append(b, associatedDomain...)
	b = append(b, formatVersion, byte(profile))
	b = append(b, unique...)
	return append(b, text...)
}

// associatedDataHSMIV is that of profile aes-gcm-hsm-iv: the nonce is not known before the token has sealed, so its length
// stands for it. The nonce itself is authenticated by GCM, which makes the tag with it.
func associatedDataHSMIV(nonceSize int, id KeyID) []byte {
	text := id.String()
	b := make([]byte, 0, len(associatedDomain)+headerSize+1+len(text))
	b = append(b, associatedDomain...)
	b = append(b, formatVersion, byte(AESGCMHSMIV), byte(nonceSize))
	return append(b, text...)
}

// kdfInput is what the token authenticates to derive the one-time key of an envelope of HMACKDF or HMACKDFNonce.
func kdfInput(profile Profile, salt []byte) []byte {
	b := make([]byte, 0, len(kdfDomain)+headerSize+len(salt))
	b = append(b, kdfDomain...)
	b = append(b, formatVersion, byte(profile))
	return append(b, salt...)
}
