package envelope

import (
	"fmt"
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

// Profile says how a ring's keys wrap a DEK. Its number is the envelope's second byte. 3 is reserved for
// nonces made by the HSM (CloudHSM, Luna in FIPS mode), 4 for a local key hierarchy.
type Profile byte

const (
	// AESGCM: AES-256-GCM in the token, a random 96-bit nonce for each envelope.
	AESGCM Profile = 1
	// HMACKDF: HMAC-SHA-256 in the token derives a one-time key from a random 256-bit salt; AES-256-GCM
	// under it in software. For tokens without AES-GCM.
	HMACKDF Profile = 2
)

// String is the profile's name in the configuration.
func (p Profile) String() string {
	switch p {
	case AESGCM:
		return "aes-gcm"
	case HMACKDF:
		return "hmac-kdf"
	}
	return fmt.Sprintf("profile %d", byte(p))
}

// ParseProfile is the inverse of Profile.String.
func ParseProfile(name string) (Profile, error) {
	for _, p := range []Profile{AESGCM, HMACKDF} {
		if p.String() == name {
			return p, nil
		}
	}
	return 0, fmt.Errorf("unknown profile %q: aes-gcm and hmac-kdf are known", name)
}

// uniqueSize is the length of what makes each envelope of the profile unique: nonce or salt.
func (p Profile) uniqueSize() int {
	if p == HMACKDF {
		return SaltSize
	}
	return NonceSize
}

// Envelope is a wrapped DEK, parsed. Its slices share the memory it was parsed from.
type Envelope struct {
	Profile Profile
	Unique  []byte // aes-gcm: the nonce; hmac-kdf: the salt
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
	if profile != AESGCM && profile != HMACKDF {
		return Envelope{}, fmt.Errorf("%w: %s is not known", ErrMalformed, profile)
	}
	rest := b[headerSize:]
	unique := profile.uniqueSize()
	if n := len(rest) - unique - TagSize; n < 1 || n > MaxDEK {
		return Envelope{}, fmt.Errorf("%w: %d bytes cannot hold a DEK of 1 to %d bytes in %s", ErrMalformed, len(b), MaxDEK, profile)
	}
	return Envelope{Profile: profile, Unique: rest[:unique:unique], Sealed: rest[unique:]}, nil
}

// Marshal is the inverse of Parse.
func (e Envelope) Marshal() []byte {
	b := make([]byte, 0, headerSize+len(e.Unique)+len(e.Sealed))
	b = append(b, formatVersion, byte(e.Profile))
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
	b := make([]byte, 0, len(associatedDomain)+headerSize+len(unique)+len(text))
	b = append(b, associatedDomain...)
	b = append(b, formatVersion, byte(profile))
	b = append(b, unique...)
	return append(b, text...)
}

// kdfInput is what the token authenticates to derive the one-time key of an hmac-kdf envelope.
func kdfInput(salt []byte) []byte {
	b := make([]byte, 0, len(kdfDomain)+headerSize+len(salt))
	b = append(b, kdfDomain...)
	b = append(b, formatVersion, byte(HMACKDF))
	return append(b, salt...)
}
