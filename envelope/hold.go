package envelope

import (
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Day counts days since 1970-01-01 UTC.
type Day uint32

// MaxDay is the last day that an envelope can name: in the year 47904.
const MaxDay Day = 0x00ffffff

// DayOf is the day of t. A clock before 1970 or after MaxDay gives the first or the last.
func DayOf(t time.Time) Day {
	const seconds = 24 * 60 * 60
	return Day(min(max(t.Unix(), 0)/seconds, int64(MaxDay)))
}

func (d Day) bytes() []byte { return binary.BigEndian.AppendUint32(nil, uint32(d)) }

const daySize = 4

// HoldKey is what seals in the outage hold on one day. It depends on the KEK and the day alone, so every node that has the
// KEK has the same without any exchange. The holder wipes it.
type HoldKey [MACSize]byte

// The domains of what is derived for a hold. NUL ends them, as it does those of format.go.
const (
	holdDomain    = "hsm-kms/outage/1\x00"
	holdKDFDomain = "hsm-kms/outage-kdf/1\x00"
)

// DeriveHoldKey makes the hold key of a day inside the token, for a ring of the profile. What is sealed under a wrong key is
// lost, and no tag shows it before: so it derives twice, compares, and takes the fingerprint in between. Three HSM operations.
// Errors: ErrMalformed for a day after MaxDay, ErrSelfTest, and those of Token.
func DeriveHoldKey(ctx context.Context, token Token, profile Profile, id KeyID, day Day) (HoldKey, error) {
	first, err := deriveHoldKey(ctx, token, profile, id, day)
	if err != nil {
		return HoldKey{}, err
	}
	var second HoldKey
	defer clear(second[:])
	if err = checkFingerprint(ctx, token, profile, id); err == nil {
		second, err = deriveHoldKey(ctx, token, profile, id, day)
	}
	if err == nil && !hmac.Equal(first[:], second[:]) {
		err = fmt.Errorf("%w: it derived two hold keys of %s for one day", ErrSelfTest, id)
	}
	if err != nil {
		clear(first[:])
		return HoldKey{}, err
	}
	return first, nil
}

func deriveHoldKey(ctx context.Context, token Token, profile Profile, id KeyID, day Day) (key HoldKey, err error) {
	if day > MaxDay {
		return key, fmt.Errorf("%w: day %d, the last is %d", ErrMalformed, day, MaxDay)
	}
	input := append([]byte(holdDomain), day.bytes()...)
	if profile == HMACKDF {
		mac, err := token.MAC(ctx, id, input)
		if err == nil && isZero(mac[:]) {
			err = fmt.Errorf("%w: the token returned an HMAC of zeros", ErrSelfTest)
		}
		return HoldKey(mac), err
	}
	blocks, err := holdBlocks(ctx, token, profile, id, day)
	if err != nil {
		return key, err
	}
	input = slices.Concat(input, blocks)
	key = sha256.Sum256(input)
	clear(blocks)
	clear(input)
	return key, nil
}

// holdBlocks are two AES blocks that only this key gives, under a reserved nonce. They are made as the fingerprint's are
// (FingerprintProbe), and must not be published.
func holdBlocks(ctx context.Context, token Token, profile Profile, id KeyID, day Day) ([]byte, error) {
	nonce := [NonceSize]byte(append([]byte(reservedNonces), day.bytes()...))
	const size = 32
	if profile == AESGCMHSMIV {
		in := slices.Concat(nonce[:], []byte{0, 0, 0, 2}, nonce[:], []byte{0, 0, 0, 3})
		out, err := token.EncryptBlocks(ctx, id, in)
		switch {
		case err != nil:
			return nil, err
		case len(out) != size || bytes.Equal(out, in):
			return nil, fmt.Errorf("%w: deriving a hold key gave %d bytes, or the plaintext", ErrSelfTest, len(out))
		}
		return out, nil
	}
	out, err := token.EncryptGCM(ctx, id, &nonce, []byte(holdDomain), make([]byte, size))
	switch {
	case err != nil:
		return nil, err
	case len(out) != size+TagSize || isZero(out[:size]):
		return nil, fmt.Errorf("%w: deriving a hold key gave %d bytes, or the plaintext", ErrSelfTest, len(out))
	}
	return out[:size], nil
}

// SealHold wraps dek for the hold of the key id, under its hold key of the day. It asks no HSM. Go makes the nonce, because
// its FIPS 140-3 module approves no other. Errors: ErrDEKSize, and ErrMalformed for a day after MaxDay.
func SealHold(key *HoldKey, id KeyID, day Day, dek []byte) ([]byte, error) {
	if len(dek) < 1 || len(dek) > MaxDEK {
		return nil, ErrDEKSize
	}
	if day > MaxDay {
		return nil, fmt.Errorf("%w: day %d, the last is %d", ErrMalformed, day, MaxDay)
	}
	unique := make([]byte, daySize+SaltSize, daySize+SaltSize+NonceSize)
	copy(unique, day.bytes())
	_, _ = rand.Read(unique[daySize:])
	var sealed []byte
	oneTime := holdOneTimeKey(key, unique)
	err := underOneTimeKey(&oneTime, cipher.NewGCMWithRandomNonce, func(aead cipher.AEAD) error {
		for sealed == nil || isReserved(sealed[:NonceSize]) {
			sealed = aead.Seal(nil, nil, dek, associatedData(Hold, unique, id))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return Envelope{Profile: Hold, Unique: append(unique, sealed[:NonceSize]...), Sealed: sealed[NonceSize:]}.Marshal(), nil
}

// OpenHold unwraps an envelope that SealHold made, under the hold key of its day (Envelope.Day). It asks no HSM. The caller wipes
// the DEK. Errors: ErrMalformed when it is of another profile, ErrUnauthentic.
func OpenHold(key *HoldKey, id KeyID, envelope []byte) ([]byte, error) {
	e, err := Parse(envelope)
	if err != nil {
		return nil, err
	}
	if e.Profile != Hold {
		return nil, fmt.Errorf("%w: its profile is %s, not %s", ErrMalformed, e.Profile, Hold)
	}
	return openHold(key, id, e)
}

func openHold(key *HoldKey, id KeyID, e Envelope) ([]byte, error) {
	oneTime := holdOneTimeKey(key, e.Unique)
	return openOneTime(&oneTime, e.Unique[daySize+SaltSize:], associatedData(Hold, e.Unique, id), e.Sealed)
}

// holdOneTimeKey derives the key of one envelope: from the header, the day and the salt, with which unique begins.
func holdOneTimeKey(key *HoldKey, unique []byte) (oneTime [MACSize]byte) {
	h := hmac.New(sha256.New, key[:])
	h.Write([]byte(holdKDFDomain))
	h.Write([]byte{formatVersion, byte(Hold)})
	h.Write(unique[:daySize+SaltSize])
	h.Sum(oneTime[:0])
	return oneTime
}

// Day is the day on which an envelope of the profile Hold was sealed.
func (e Envelope) Day() Day { return Day(binary.BigEndian.Uint32(e.Unique)) }

// holdSuffix ends the text under which is stored what was sealed in a hold.
const holdSuffix = "/hold"

// HoldString is the key_id under which an API server stores what was sealed in the hold of this key: K/hold.
func (k KeyID) HoldString() string { return k.String() + holdSuffix }

// ParseUsedKeyID reads a key_id as an API server stores it: that of a key, or K/hold. id is the key's. The error wraps
// ErrUnknownKey, as that of ParseKeyID.
func ParseUsedKeyID(text string) (id KeyID, hold bool, err error) {
	name, hold := strings.CutSuffix(text, holdSuffix)
	id, err = ParseKeyID(name)
	return id, hold && err == nil, err
}

// KeyOf is the key_id of the key that is needed for what is stored under the text: K for K/hold. Every other text is returned
// as it is.
func KeyOf(text string) string {
	if id, hold, err := ParseUsedKeyID(text); err == nil && hold {
		return id.String()
	}
	return text
}
