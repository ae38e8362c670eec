package envelope

import (
	"context"
	"time"
)

// NonceSize is the length of an AES-GCM nonce in bytes, TagSize that of its tag (NIST SP 800-38D,
// sections 5.2.1.1 and 5.2.1.2), MACSize that of an HMAC-SHA-256 value (FIPS 198-1, RFC 4868).
//
// LongNonceSize is the other length that a nonce has which the token makes: Luna in FIPS mode appends 16 bytes.
const (
	NonceSize     = 12
	LongNonceSize = 16
	TagSize       = 16
	MACSize       = 32
)

// Token does with the keys of one ring what a profile needs, on one token or on several that hold the
// same keys.
//
// Concurrency: every method may be called from any number of goroutines.
// Context: a call returns by the context's deadline or by the token's own call time-out, whichever is
// first, even when the HSM hangs.
// Errors: ErrUnknownKey (the token does not hold the key), ErrUnauthentic (DecryptGCM only), ErrNonceRepeated
// (EncryptOwnNonce only),
// ErrUnavailable, ErrBusy, one that IsPIN knows, or the context's error.
// Buffers: inputs are not kept or changed after the call; outputs belong to the caller, who wipes them.
type Token interface {
	// Name is the token's name in the configuration.
	Name() string
	// Generation numbers the present connection (module, login, sessions and handles). It grows by
	// every recovery and is 0 while the token cannot be used. What was proven of a key counts for the
	// generation in which it was proven.
	Generation() uint64
	// Problem is why the token cannot be used, without asking it; nil: it can (Generation is not 0).
	Problem() error
	// Keys reads the ring from the token: every secret key that bears its label, those that are not
	// served (Key.Refused) included, in no particular order.
	Keys(ctx context.Context) ([]Key, error)
	// EncryptGCM returns ciphertext and tag (CKM_AES_GCM, 128-bit tag). associated must not be empty.
	EncryptGCM(ctx context.Context, id KeyID, nonce *[NonceSize]byte, associated, plaintext []byte) ([]byte, error)
	// EncryptOwnNonce is EncryptGCM under a nonce that the token makes, of NonceSize or LongNonceSize bytes: associated gives
	// the associated data for either. The caller does not use an answer whose nonce is zero or reserved.
	EncryptOwnNonce(ctx context.Context, id KeyID, associated func(nonceSize int) []byte, plaintext []byte) (nonce, sealed []byte, err error)
	// DecryptGCM is the inverse of both; sealed is ciphertext and tag.
	DecryptGCM(ctx context.Context, id KeyID, nonce, associated, sealed []byte) ([]byte, error)
	// EncryptBlocks returns AES-ECB of whole blocks (CKM_AES_ECB). It is asked for the blocks of hold keys only.
	EncryptBlocks(ctx context.Context, id KeyID, blocks []byte) ([]byte, error)
	// MAC returns HMAC-SHA-256 of data (CKM_SHA256_HMAC).
	MAC(ctx context.Context, id KeyID, data []byte) ([MACSize]byte, error)
}

// Distruster is a Token that can be told that it works wrongly: it could not open what it sealed, or gave a wrong
// length. It gives the connection up, and serves again when the self-test of a new one passes. Distrust does not wait.
type Distruster interface {
	Distrust(why error)
}

// Suspender is a Token that may be unable to use single keys while it serves others. Suspended asks no HSM; it names those
// keys, and why.
type Suspender interface {
	Suspended() map[KeyID]error
}

// Seeker is a Token that may hold keys that it does not show, because its library reads them once. Seek has it look again
// for a key that it does not show, if that may help; nil: it may not, or not now. The channel is closed when it has looked.
// Seek does not wait.
type Seeker interface {
	Seek(id KeyID) <-chan struct{}
}

// Tokens are the tokens that hold one ring. As a Token they are the first that is healthy and holds the
// key asked for.
type Tokens interface {
	Token
	// Members are the single tokens, in the order of the configuration.
	Members() []Token
}

// Key is one version of the ring as one token holds it.
type Key struct {
	ID         KeyID     // without a fingerprint when Refused
	CKAID      []byte    // the raw CKA_ID
	Activation time.Time // zero: always (a key made elsewhere)
	Attributes Attributes
	Refused    string // why the key is not served, for people; empty: it is served
}

// Attributes are what an auditor asks of a key (PKCS#11 v2.40 section 4.2, tables 20 and 33). An
// attribute that the token does not tell is false: the careful reading.
type Attributes struct {
	Known                                                                     bool // the token was asked, and answered; otherwise the others say nothing
	Private, Sensitive, Extractable, AlwaysSensitive, NeverExtractable, Local bool
}

// Observer is told of every call into an HSM. Implementations must be safe for concurrent use, must not
// block and must not call back. function is the PKCS#11 name (C_Encrypt), result a CKR name ("CKR_OK") or
// "abandoned" for a call past its deadline.
type Observer interface {
	HSMCall(token, function, result string, took time.Duration)
}
