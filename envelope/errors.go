package envelope

import "errors"

// ConflictHint goes with keys of which more than one could be meant (ErrAmbiguous, View.Duplicates): each of them may be in use.
const ConflictHint = "keep every key; find out which key_ids are in use: hsm-kms keys list, then hsm-kms etcd report for each cluster whose configuration names this ring; docs/rotation.md has what to do then"

// The failures that the whole program tells apart. Each layer wraps them with %w and its own detail;
// kmsplugin maps them to gRPC codes in one place, the commands to exit codes.
var (
	// ErrMalformed: the bytes are not an envelope of ours (length, version, profile). Found before the
	// HSM is asked.
	ErrMalformed = errors.New("not a wrapped DEK of this plugin")
	// ErrUnauthentic: the bytes have the form of an envelope, and the token refused to open them, though
	// it opens what it sealed itself: they were changed, or belong to another key or key_id.
	ErrUnauthentic = errors.New("wrapped DEK is not authentic")
	// ErrUnknownKey: the ring holds no key of that key_id.
	ErrUnknownKey = errors.New("unknown key_id")
	// ErrKeyRefused: the token holds the key, and it is not served. It comes with ErrUnknownKey.
	ErrKeyRefused = errors.New("is refused")
	// ErrUnavailable: the HSM cannot be asked just now: not reachable, hanging, or being recovered.
	ErrUnavailable = errors.New("HSM unavailable")
	// ErrKeySuspended: the token can use other keys, and not this one, for now. It comes with ErrUnavailable.
	ErrKeySuspended = errors.New("the HSM cannot use the key just now")
	// ErrDeadly: the HSM's library ended its process at this very request, twice. It comes with ErrUnavailable.
	ErrDeadly = errors.New("this request ended the PKCS#11 module twice, and is not tried again for a while")
	// ErrBusy: too many callers already wait for a session.
	ErrBusy = errors.New("too many requests are waiting for the HSM")
	// ErrPINRefused: the token refused the PIN, or an earlier attempt with this PIN file did not succeed.
	// No further attempt is made until a person changes the file: tokens lock for good.
	ErrPINRefused = errors.New("the HSM refused the PIN")
	// ErrPINLocked: the token takes no PIN, right or wrong, until somebody unlocks it or some time has passed.
	ErrPINLocked = errors.New("the HSM says that its PIN is locked")
	// ErrPINExpired: the token wants another PIN to be set first.
	ErrPINExpired = errors.New("the HSM says that the PIN has expired")
	// ErrRingEmpty: no usable key on the token has the ring's label.
	ErrRingEmpty = errors.New("the key ring is empty")
	// ErrAmbiguous: more than one key could be meant. It is never guessed which.
	ErrAmbiguous = errors.New("the key ring is ambiguous")
	// ErrKeyMissing: the key that was current is no longer on any token.
	ErrKeyMissing = errors.New("the current key is missing from the HSM")
	// ErrNotProven: no key of the ring has yet been sealed and opened with by this process.
	ErrNotProven = errors.New("no key has been proven on the HSM yet")
	// ErrNonceRepeated: the token made a nonce that was used with this key before. It seals no more with it, and still opens.
	ErrNonceRepeated = errors.New("the HSM made a nonce that was used with this key before")
	// ErrNonceMemory: what is remembered of the nonces that tokens made cannot be used. Nothing is sealed under another.
	ErrNonceMemory = errors.New("the memory of the HSM's nonces cannot be used")
	// ErrSelfTest: the token does not do what the profile needs, or cannot open what it sealed.
	ErrSelfTest = errors.New("the HSM failed the self-test")
)

// Hints about a PIN that keeps a token from being used, for all who print them.
const (
	PINRefusedHint = "write the right PIN to the PIN file: another PIN is tried at once, without a restart. The same PIN is not tried again, because tokens lock for good; " +
		"if it is right, allow one more attempt with: hsm-kms doctor --try-pin"
	PINLockedHint = "a TPM in dictionary-attack lock-out recovers by itself (see it with tpm2_getcap properties-variable), or with tpm2_dictionarylockout -c; " +
		"any other token: find out who tried wrong PINs, and let the security officer unlock it. The plugin looks again, at least every 10 minutes"
	PINExpiredHint = "set a new PIN with the vendor's tool and write it to the PIN file: another PIN is tried at once, without a restart"
)

// IsPIN reports whether a token cannot be used because of its PIN: refused, locked or expired.
func IsPIN(err error) bool {
	return errors.Is(err, ErrPINRefused) || errors.Is(err, ErrPINLocked) || errors.Is(err, ErrPINExpired)
}
