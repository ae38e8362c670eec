package envelope

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The CKA_ID of a key that hsm-kms makes, 42 bytes of printable ASCII, because vendors' tools take text:
//
//	hk1-TTTTTTTTTTTT-RRRRRRRRRRRRRRRR-CCCCCCCC
//
// magic and version; the activation time in milliseconds since 1970, 12 hex digits; 64 random bits; the
// first 4 bytes of SHA-256 over all that stands before the last hyphen. A CKA_ID cannot be changed
// without leaving that form (and the keys are made not modifiable where the token can), so the ring's
// order needs no other store.
//
// The random part of an emergency key begins with emergencyMark. The mark stands there, and not in the magic, because
// programs that do not know it then see the key as an ordinary one, with the same key_id and the same place in the order.
const (
	idMagic     = "hk1-"
	idRandom    = 8
	idTimeEnd   = len(idMagic) + 12
	idRandomEnd = idTimeEnd + 1 + 2*idRandom
	idLength    = idRandomEnd + 1 + 8
	hexDigits   = "0123456789abcdef"

	emergencyMark = "eeeeeeee"
)

// foreignMark begins the version of a key whose CKA_ID is not ours; hex digits of the CKA_ID follow.
const foreignMark = "x"

// maxForeignID bounds the CKA_ID of a key made elsewhere, in bytes, so that its key_id fits MaxKeyID.
const maxForeignID = 64

// NewCKAID makes the CKA_ID of a new version that becomes current at activation (to the millisecond). It
// fails on a time before 1970 or after the year 10889, which 48 bits cannot say.
func NewCKAID(activation time.Time) ([]byte, error) {
	for {
		var random [idRandom]byte
		_, _ = rand.Read(random[:]) // crypto/rand.Read never fails: it ends the process instead
		if id, err := ckaID(activation, random); err != nil || !emergency(string(id)) {
			return id, err
		}
	}
}

// NewEmergencyCKAID is NewCKAID for a version that waits for no token but one that works.
func NewEmergencyCKAID(activation time.Time) ([]byte, error) {
	random := [idRandom]byte{0xee, 0xee, 0xee, 0xee} // emergencyMark
	_, _ = rand.Read(random[len(emergencyMark)/2:])
	return ckaID(activation, random)
}

// emergency reports whether a version of ours has the mark.
func emergency(version string) bool {
	return ownVersion(version) && strings.HasPrefix(version[idTimeEnd+1:], emergencyMark)
}

func ckaID(activation time.Time, random [idRandom]byte) ([]byte, error) {
	ms := activation.UnixMilli()
	if ms < 0 || ms >= 1<<48 {
		return nil, fmt.Errorf("making a CKA_ID: activation %s is outside what 48 bits of milliseconds can say", activation.UTC().Format(time.RFC3339))
	}
	head := fmt.Sprintf("%s%012x-%s", idMagic, ms, hex.EncodeToString(random[:]))
	return []byte(head + "-" + idChecksum(head)), nil
}

func idChecksum(head string) string {
	sum := sha256.Sum256([]byte(head))
	return hex.EncodeToString(sum[:4])
}

// ActivationOf reads the activation time from a CKA_ID of ours. ok is false for every other CKA_ID: a
// key made elsewhere, which is active always.
func ActivationOf(ckaID []byte) (activation time.Time, ok bool) {
	text := string(ckaID)
	if !ownVersion(text) {
		return time.Time{}, false
	}
	ms, err := strconv.ParseInt(text[len(idMagic):idTimeEnd], 16, 64)
	if err != nil {
		return time.Time{}, false
	}
	return time.UnixMilli(ms).UTC(), true
}

func ownVersion(text string) bool {
	return len(text) == idLength && strings.HasPrefix(text, idMagic) &&
		consistsOf(text[len(idMagic):idTimeEnd], hexDigits) && text[idTimeEnd] == '-' &&
		consistsOf(text[idTimeEnd+1:idRandomEnd], hexDigits) && text[idRandomEnd] == '-' &&
		text[idRandomEnd+1:] == idChecksum(text[:idRandomEnd])
}

// VersionOf is how a CKA_ID stands in a key_id: ours verbatim, any other as "x" and hex. It fails on one
// that is too long to be named.
func VersionOf(ckaID []byte) (string, error) {
	if ownVersion(string(ckaID)) {
		return string(ckaID), nil
	}
	if len(ckaID) > maxForeignID {
		return "", fmt.Errorf("its CKA_ID has %d bytes, more than the %d that a key_id has room for", len(ckaID), maxForeignID)
	}
	return foreignMark + hex.EncodeToString(ckaID), nil
}

// validVersion reports whether VersionOf can have made text.
func validVersion(text string) bool {
	if ownVersion(text) {
		return true
	}
	digits, found := strings.CutPrefix(text, foreignMark)
	if !found || !consistsOf(digits, hexDigits) {
		return false
	}
	raw, err := hex.DecodeString(digits)
	return err == nil && len(raw) <= maxForeignID && !ownVersion(string(raw))
}
