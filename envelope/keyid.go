package envelope

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// MaxKeyID bounds a key_id in bytes. The API server's own limit is 1 kB (k8s.io/apiserver,
// envelope/kmsv2.KeyIDMaxSize); ours leaves room in logs and tables.
const MaxKeyID = 256

// FingerprintSize is the length of a key's fingerprint in bytes.
const FingerprintSize = 8

// maxRing is the longest name of a ring, as the configuration allows it.
const maxRing = 63

// KeyID names one KEK: the ring, the version within it, and the fingerprint of the key's material. It is
// comparable. Its text is what kube-apiserver stores beside every object:
//
//	kube-secrets/hk1-019ab3c4d5e6-0011223344556677-89abcdef/0123456789abcdef
//
// Because of the fingerprint, two tokens that hold different keys under one label and CKA_ID can never
// be mistaken for each other, and a copy of a key has the key_id of its original.
type KeyID struct {
	Ring        string
	Version     string // as VersionOf gives it
	Fingerprint [FingerprintSize]byte
}

// String is the text of the key_id.
func (k KeyID) String() string {
	return k.Ring + "/" + k.Version + "/" + hex.EncodeToString(k.Fingerprint[:])
}

// FingerprintHex is the fingerprint as people read it.
func (k KeyID) FingerprintHex() string { return hex.EncodeToString(k.Fingerprint[:]) }

// Emergency reports whether the key was made to wait for no token: `keys rotate --without-token`.
func (k KeyID) Emergency() bool { return emergency(k.Version) }

// IsZero reports whether it names no key.
func (k KeyID) IsZero() bool { return k == KeyID{} }

// ParseKeyID is the inverse of KeyID.String: it accepts what String makes and nothing else. The error
// wraps ErrUnknownKey, since another text asks for a key that no ring of ours can hold.
func ParseKeyID(text string) (KeyID, error) {
	refuse := func(why string) (KeyID, error) {
		return KeyID{}, fmt.Errorf("%w: %s", ErrUnknownKey, why)
	}
	if len(text) == 0 || len(text) > MaxKeyID {
		return refuse(fmt.Sprintf("%d bytes, 1 to %d are possible", len(text), MaxKeyID))
	}
	if strings.HasSuffix(text, holdSuffix) {
		return refuse("it ends in " + holdSuffix + ", and names an outage hold, not a key")
	}
	parts := strings.Split(text, "/")
	if len(parts) != 3 {
		return refuse("the form is RING/VERSION/FINGERPRINT")
	}
	id := KeyID{Ring: parts[0], Version: parts[1]}
	if !ValidRing(id.Ring) {
		return refuse("the ring's name is not one")
	}
	if !validVersion(id.Version) {
		return refuse("the version is not one")
	}
	fingerprint, err := hex.DecodeString(parts[2])
	if err != nil || len(fingerprint) != FingerprintSize || strings.ToLower(parts[2]) != parts[2] {
		return refuse("the fingerprint is not 16 lower-case hex digits")
	}
	id.Fingerprint = [FingerprintSize]byte(fingerprint)
	return id, nil
}

// ValidRing reports whether name may name a ring: [a-z0-9.-]{1,63}. The CKA_LABEL of every version is this
// name.
func ValidRing(name string) bool {
	return len(name) >= 1 && len(name) <= maxRing && consistsOf(name, "abcdefghijklmnopqrstuvwxyz0123456789.-")
}

// consistsOf reports whether every byte of text is in set.
func consistsOf(text, set string) bool {
	return strings.IndexFunc(text, func(r rune) bool { return !strings.ContainsRune(set, r) }) < 0
}
