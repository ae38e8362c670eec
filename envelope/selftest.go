package envelope

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
)

// SelfTest proves the profile with one key on one token: two envelopes of one DEK differ in nonce and in
// ciphertext, lengths are exact, both open, and neither a flipped bit nor another key_id does. A token
// that takes its nonce from elsewhere, ignores the associated data or returns plaintext is found here,
// before it sees a DEK. Costs eight HSM operations, up to four of them at once. Errors: ErrSelfTest, or those of Token.
func SelfTest(ctx context.Context, token Token, profile Profile, id KeyID) error {
	dek := make([]byte, 32)
	_, _ = rand.Read(dek)
	defer clear(dek)
	var sealed [2][]byte
	err := together(len(sealed), func(i int) (err error) {
		sealed[i], err = sealAndOpen(ctx, token, profile, id, dek)
		return err
	})
	if err != nil {
		return err
	}
	first := sealed[0]
	if err := differ(first, sealed[1], dek); err != nil {
		return err
	}
	nonce := len(first) - TagSize - len(dek) - 1 // its last byte
	changes := []int{nonce, len(first) - TagSize - 1, len(first) - 1}
	return together(len(changes)+1, func(i int) error {
		if i == len(changes) {
			return mustNotOpenAs(ctx, token, profile, id, first)
		}
		changed := bytes.Clone(first)
		changed[changes[i]] ^= 1
		return mustNotOpen(ctx, token, profile, id, changed, fmt.Sprintf("byte %d changed", changes[i]))
	})
}

// together does f for 0 to n-1 at once. The error is that of the lowest number that failed.
func together(n int, f func(i int) error) error {
	errs := make([]error, n)
	var running sync.WaitGroup
	for i := range n {
		running.Go(func() { errs[i] = f(i) })
	}
	running.Wait()
	return cmp.Or(errs...)
}

// Prove seals and opens once with the key on the token: two HSM operations. Errors: ErrSelfTest when the
// token cannot open what it sealed, or those of Token.
func Prove(ctx context.Context, token Token, profile Profile, id KeyID) error {
	dek := make([]byte, 32)
	_, _ = rand.Read(dek)
	defer clear(dek)
	_, err := sealAndOpen(ctx, token, profile, id, dek)
	return err
}

func sealAndOpen(ctx context.Context, token Token, profile Profile, id KeyID, dek []byte) ([]byte, error) {
	envelope, err := SealDEK(ctx, token, profile, id, dek)
	if err != nil {
		return nil, fmt.Errorf("sealing a test DEK: %w", err)
	}
	opened, err := OpenDEK(ctx, token, profile, id, envelope)
	defer clear(opened)
	if errors.Is(err, ErrUnauthentic) {
		return nil, fmt.Errorf("%w: it cannot open what it sealed: %w", ErrSelfTest, err)
	}
	if err != nil {
		return nil, fmt.Errorf("opening a test DEK: %w", err)
	}
	if !bytes.Equal(opened, dek) {
		return nil, fmt.Errorf("%w: a test DEK came back changed", ErrSelfTest)
	}
	return envelope, nil
}

func differ(first, second, dek []byte) error {
	a, errA := Parse(first)
	b, errB := Parse(second)
	if err := errors.Join(errA, errB); err != nil {
		return fmt.Errorf("%w: %w", ErrSelfTest, err)
	}
	switch {
	case bytes.Equal(a.Unique, b.Unique):
		return fmt.Errorf("%w: two nonces are equal", ErrSelfTest)
	case bytes.Equal(a.Sealed, b.Sealed), bytes.Equal(a.Sealed[:len(dek)], b.Sealed[:len(dek)]):
		return fmt.Errorf("%w: two ciphertexts of one DEK are equal: the nonce is not used", ErrSelfTest)
	case bytes.Contains(a.Sealed, dek), bytes.Contains(b.Sealed, dek):
		return fmt.Errorf("%w: the ciphertext is the plaintext", ErrSelfTest)
	}
	return nil
}

func mustNotOpen(ctx context.Context, token Token, profile Profile, id KeyID, envelope []byte, what string) error {
	opened, err := OpenDEK(ctx, token, profile, id, envelope)
	clear(opened)
	switch {
	case err == nil:
		return fmt.Errorf("%w: it opened an envelope with %s", ErrSelfTest, what)
	case errors.Is(err, ErrUnauthentic):
		return nil
	}
	return fmt.Errorf("opening an envelope with %s: %w", what, err)
}

// mustNotOpenAs asks for the same ciphertext under other associated data. The lookup of the key is by
// key_id, so the associated data is made for another key_id and the key itself stays. The other key_id is made
// from this one, so that no name can make the two equal.
func mustNotOpenAs(ctx context.Context, token Token, profile Profile, id KeyID, envelope []byte) error {
	other := id
	other.Fingerprint[0] ^= 1
	return mustNotOpen(ctx, relabelled{Token: token, real: id}, profile, other, envelope, "other associated data")
}

// relabelled is a token that uses the key real whatever key it is asked for.
type relabelled struct {
	Token
	real KeyID
}

func (r relabelled) DecryptGCM(ctx context.Context, _ KeyID, nonce, associated, sealed []byte) ([]byte, error) {
	return r.Token.DecryptGCM(ctx, r.real, nonce, associated, sealed)
}

func (r relabelled) MAC(ctx context.Context, _ KeyID, data []byte) ([MACSize]byte, error) {
	return r.Token.MAC(ctx, r.real, data)
}
