// Package envelope is the part of hsm-kms that needs no HSM to be understood: the format of a wrapped
// DEK, the key_id that names the KEK it was wrapped with, and the key ring, which says what KEKs there
// are and which of them is current. FORMAT.md is its specification.
//
// In a dozen lines: kube-apiserver encrypts each object with a data-encryption key (DEK, or the seed of
// one). It asks this program to wrap the DEK with a key-encryption key (KEK) that never leaves the HSM,
// and stores the wrapped DEK and its key_id beside the object in etcd. To read, it sends both back. An
// envelope is
//
//	version (1) | profile (1) | nonce (12) or salt (32) | ciphertext (as long as the DEK) | tag (16)
//
// (with the length of the nonce before it where the HSM makes it; in an outage hold the day and a salt before it)
//
// and its associated data is a domain string, every header field and the key_id, so that an envelope
// opens under the one key it names and as the one thing it is, or not at all.
//
// The package owns the interface that a token must satisfy ([Token]), the errors that the whole program
// speaks ([ErrUnavailable] and its like), and the observer through which HSM calls are counted
// ([Observer]). It knows no cgo, no gRPC and no logging; a test holds it to that.
//
// It depends on the standard library alone. Ring documents its locks; everything else is values and pure functions.
package envelope
