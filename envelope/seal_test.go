package envelope

import (
	"bytes"
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"testing"
)

var profiles = Profiles()

// sealed is an envelope and what it was made with.
type sealed struct {
	token    *softToken
	id       KeyID
	dek      []byte
	envelope []byte
}

func newSealed(t *testing.T, profile Profile, n int) sealed {
	t.Helper()
	key := newSoftKey(profile, "r", []byte("key"), "seed")
	s := sealed{token: newSoftToken("soft", key), id: key.ID, dek: bytes.Repeat([]byte{0xd}, n)}
	var err error
	if s.envelope, err = SealDEK(t.Context(), s.token, profile, s.id, s.dek); err != nil {
		t.Fatal(err)
	}
	return s
}

func forProfiles(t *testing.T, f func(t *testing.T, profile Profile)) {
	t.Helper()
	for _, profile := range profiles {
		t.Run(profile.String(), func(t *testing.T) { t.Parallel(); f(t, profile) })
	}
}

func TestSealThenOpen(t *testing.T) {
	t.Parallel()
	forProfiles(t, func(t *testing.T, profile Profile) {
		for _, n := range []int{1, 15, 16, 17, 32, 33, MaxDEK} {
			s := newSealed(t, profile, n)
			again, err := SealDEK(t.Context(), s.token, profile, s.id, s.dek)
			if err != nil || bytes.Equal(again, s.envelope) || bytes.Contains(s.envelope, s.dek) && n >= 15 {
				t.Errorf("%d bytes: %x and %x, %v", n, s.envelope, again, err)
			}
			before := s.token.used(s.id)
			got, err := OpenDEK(t.Context(), s.token, profile, s.id, s.envelope)
			if err != nil || !bytes.Equal(got, s.dek) {
				t.Errorf("%d bytes: %x, %v", n, got, err)
			}
			if uses := s.token.used(s.id) - before; uses != 1 {
				t.Errorf("opening took %d operations of the HSM, want 1", uses)
			}
		}
	})
}

func TestDEKSizes(t *testing.T) {
	t.Parallel()
	forProfiles(t, func(t *testing.T, profile Profile) {
		s := newSealed(t, profile, 32)
		before := s.token.used(s.id)
		for _, n := range []int{0, MaxDEK + 1, 1 << 20} {
			if _, err := SealDEK(t.Context(), s.token, profile, s.id, make([]byte, n)); !errors.Is(err, ErrDEKSize) || !errors.Is(err, ErrMalformed) {
				t.Errorf("%d bytes: %v, want ErrDEKSize", n, err)
			}
		}
		if s.token.used(s.id) != before {
			t.Error("the token was asked all the same")
		}
	})
}

// TestEveryBitCounts: an envelope with any one bit changed does not open.
func TestEveryBitCounts(t *testing.T) {
	t.Parallel()
	forProfiles(t, func(t *testing.T, profile Profile) {
		s := newSealed(t, profile, 32)
		for bit := range 8 * len(s.envelope) {
			changed := bytes.Clone(s.envelope)
			changed[bit/8] ^= 1 << (bit % 8)
			want := ErrUnauthentic
			if bit/8 < headerSize || profile == AESGCMHSMIV && bit/8 == headerSize {
				want = ErrMalformed
			}
			dek, err := OpenDEK(t.Context(), s.token, profile, s.id, changed)
			if profile.UsesAES() && Profile(changed[1]) != profile && errors.Is(err, ErrUnauthentic) {
				continue // it has the form of the other profile that such a ring opens
			}
			if !errors.Is(err, want) || dek != nil {
				t.Errorf("bit %d of byte %d changed: %x, %v; want %v", bit%8, bit/8, dek, err, want)
			}
		}
	})
}

// TestEveryLengthCounts: no beginning of an envelope opens, and no longer one.
func TestEveryLengthCounts(t *testing.T) {
	t.Parallel()
	forProfiles(t, func(t *testing.T, profile Profile) {
		s := newSealed(t, profile, 32)
		longer := append(bytes.Clone(s.envelope), make([]byte, 40)...)
		for n := range longer {
			if n == len(s.envelope) {
				continue
			}
			dek, err := OpenDEK(t.Context(), s.token, profile, s.id, longer[:n])
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrUnauthentic) || dek != nil {
				t.Errorf("%d of %d bytes: %x, %v", n, len(s.envelope), dek, err)
			}
		}
	})
}

// TestKeyIDIsBound: the same key material under another key_id does not open the envelope.
func TestKeyIDIsBound(t *testing.T) {
	t.Parallel()
	forProfiles(t, func(t *testing.T, profile Profile) {
		s := newSealed(t, profile, 32)
		ring, version, fingerprint := s.id, s.id, s.id
		ring.Ring, version.Version = "s", "x00"
		fingerprint.Fingerprint[7] ^= 1
		for _, other := range []KeyID{ring, version, fingerprint} {
			s.token.held[other] = s.token.held[s.id]
			if dek, err := OpenDEK(t.Context(), s.token, profile, other, s.envelope); !errors.Is(err, ErrUnauthentic) {
				t.Errorf("sealed as %s, opened as %s: %x, %v", s.id, other, dek, err)
			}
		}
	})
}

// TestAssociatedDataIsInjective: no two of (profile, nonce or salt, key_id) give the same associated data; of a nonce that
// the token makes, its length counts.
func TestAssociatedDataIsInjective(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, profile := range append(Profiles(), HMACKDFNonce, Hold) {
		for _, fill := range []byte{0, 1, 'r', '/'} {
			if profile == AESGCMHSMIV && fill > 1 {
				continue
			}
			for _, ring := range []string{"r", "rr", "r.r", "-"} {
				for _, version := range []string{"x", "x00", "x72"} {
					unique := bytes.Repeat([]byte{fill}, profile.uniqueSize())
					if profile == AESGCMHSMIV && fill == 1 {
						unique = make([]byte, LongNonceSize)
					}
					id := KeyID{Ring: ring, Version: version}
					what := fmt.Sprint(profile, fill, id)
					data := string(associatedData(profile, unique, id))
					if other, found := seen[data]; found {
						t.Errorf("%s and %s have the same associated data", what, other)
					}
					seen[data] = what
				}
			}
		}
	}
}

// TestDomainsArePrefixFree: what a key authenticates for one purpose cannot pass for another.
func TestDomainsArePrefixFree(t *testing.T) {
	t.Parallel()
	domains := []string{associatedDomain, kdfDomain, fingerprintDomain, holdDomain, holdKDFDomain} // in AES the nonces are apart, by reservedNonces
	for i, a := range domains {
		for j, b := range domains {
			if i != j && bytes.HasPrefix([]byte(a), []byte(b)) {
				t.Errorf("%q begins with %q", a, b)
			}
		}
	}
	if !bytes.HasPrefix(kdfInput(HMACKDF, make([]byte, SaltSize)), []byte(kdfDomain)) || len(fingerprintDomain) != NonceSize {
		t.Error("the key derivation lacks its domain, or the fingerprint's nonce has a wrong length")
	}
}

func TestWrongProfile(t *testing.T) {
	t.Parallel()
	forProfiles(t, func(t *testing.T, profile Profile) {
		s := newSealed(t, profile, 32)
		before := s.token.used(s.id)
		others := []Profile{0, 4, HMACKDF}
		if profile == HMACKDF {
			others = []Profile{0, 4, AESGCM, AESGCMHSMIV}
		}
		for _, other := range others {
			if _, err := OpenDEK(t.Context(), s.token, other, s.id, s.envelope); !errors.Is(err, ErrMalformed) {
				t.Errorf("opened as %s: %v", other, err)
			}
		}
		if _, err := SealDEK(t.Context(), s.token, Profile(4), s.id, s.dek); !errors.Is(err, ErrMalformed) {
			t.Errorf("sealed in a profile that is reserved: %v", err)
		}
		if s.token.used(s.id) != before {
			t.Error("the token was asked all the same")
		}
	})
}

// TestTokenErrorsComeThrough: what the token says reaches the code that maps it to a code.
func TestTokenErrorsComeThrough(t *testing.T) {
	t.Parallel()
	forProfiles(t, func(t *testing.T, profile Profile) {
		for _, want := range []error{ErrUnavailable, ErrBusy, ErrPINRefused, ErrUnknownKey, context.DeadlineExceeded} {
			s := newSealed(t, profile, 32)
			s.token.failWith(want)
			if _, err := SealDEK(t.Context(), s.token, profile, s.id, s.dek); !errors.Is(err, want) {
				t.Errorf("sealing: %v, want %v", err, want)
			}
			if _, err := OpenDEK(t.Context(), s.token, profile, s.id, s.envelope); !errors.Is(err, want) {
				t.Errorf("opening: %v, want %v", err, want)
			}
		}
	})
}

// TestWrongLengthsFromTheToken: a token that answers too much or too little is at fault, not the ciphertext.
func TestWrongLengthsFromTheToken(t *testing.T) {
	t.Parallel()
	for _, change := range []func([]byte) []byte{
		func(b []byte) []byte { return b[:len(b)-1] },
		func(b []byte) []byte { return append(b, 0) },
		func([]byte) []byte { return nil },
	} {
		s := newSealed(t, AESGCM, 32)
		s.token.encrypt = func(aead cipher.AEAD, nonce, associated, plaintext []byte) ([]byte, error) {
			return change(aead.Seal(nil, nonce, plaintext, associated)), nil
		}
		s.token.decrypt = func(aead cipher.AEAD, nonce, associated, sealed []byte) ([]byte, error) {
			plaintext, err := aead.Open(nil, nonce, sealed, associated)
			return change(plaintext), err
		}
		if b, err := SealDEK(t.Context(), s.token, AESGCM, s.id, s.dek); !errors.Is(err, ErrSelfTest) {
			t.Errorf("sealing: %x, %v; want ErrSelfTest", b, err)
		}
		if b, err := OpenDEK(t.Context(), s.token, AESGCM, s.id, s.envelope); !errors.Is(err, ErrSelfTest) || b != nil {
			t.Errorf("opening: %x, %v; want ErrSelfTest", b, err)
		}
	}
}

// TestFingerprintNonceIsNoNonce: one who can write to etcd must not have the token decrypt under the fingerprint's nonce.
func TestFingerprintNonceIsNoNonce(t *testing.T) {
	t.Parallel()
	s := newSealed(t, AESGCM, 32)
	for _, nonce := range []string{fingerprintDomain, reservedNonces + "\x00\x00\x00\x01"} {
		envelope, err := sealWith(t.Context(), s.token, AESGCM, s.id, []byte(nonce), s.dek)
		if err != nil {
			t.Fatal(err)
		}
		before := s.token.used(s.id)
		if _, err := OpenDEK(t.Context(), s.token, AESGCM, s.id, envelope); !errors.Is(err, ErrMalformed) || s.token.used(s.id) != before {
			t.Errorf("opening: %v after %d operations; want ErrMalformed after none", err, s.token.used(s.id)-before)
		}
	}
}

// TestNonceOfTheToken: what is sealed under a nonce that is of no use is thrown away, and the seal repeated. A token that
// makes no other is at fault.
func TestNonceOfTheToken(t *testing.T) {
	t.Parallel()
	reserved, zero := []byte("hsm-kms/fp/1"), make([]byte, NonceSize)
	for _, test := range []struct {
		name   string
		nonces [][]byte
		used   int
		ok     bool
	}{
		{"zero once", [][]byte{zero}, 2, true},
		{"16 zeros once", [][]byte{make([]byte, LongNonceSize)}, 2, true},
		{"reserved once", [][]byte{reserved}, 2, true},
		{"a reserved one of 16 bytes", [][]byte{[]byte("hsm-kms/fp/1\x00\x00\x00\x02")}, 2, true},
		{"both", [][]byte{zero, reserved}, 3, true},
		{"zero", [][]byte{zero, zero, zero}, 3, false},
		{"11 bytes", [][]byte{zero[:11]}, 1, false},
		{"13 bytes", [][]byte{make([]byte, 13)}, 1, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newSealed(t, AESGCMHSMIV, 32)
			before, made := s.token.used(s.id), test.nonces
			s.token.nonce = func() []byte {
				if len(made) == 0 {
					return []byte("another nonc")
				}
				nonce := made[0]
				made = made[1:]
				return nonce
			}
			envelope, err := SealDEK(t.Context(), s.token, AESGCMHSMIV, s.id, s.dek)
			if used := s.token.used(s.id) - before; used != test.used {
				t.Errorf("%d operations, want %d", used, test.used)
			}
			if !test.ok {
				if !errors.Is(err, ErrSelfTest) || envelope != nil {
					t.Errorf("%x, %v; want ErrSelfTest", envelope, err)
				}
				return
			}
			e, parseErr := Parse(envelope)
			if err != nil || parseErr != nil || string(e.Unique) != "another nonc" {
				t.Errorf("%x, %v, %v", e.Unique, err, parseErr)
			}
		})
	}
}

// TestBothAESProfilesInOneRing: the reader goes by the envelope's own profile.
func TestBothAESProfilesInOneRing(t *testing.T) {
	t.Parallel()
	s := newSealed(t, AESGCM, 32)
	for _, written := range []Profile{AESGCM, AESGCMHSMIV} {
		envelope, err := SealDEK(t.Context(), s.token, written, s.id, s.dek)
		if err != nil || Profile(envelope[1]) != written {
			t.Fatalf("%x, %v", envelope, err)
		}
		for _, ring := range []Profile{AESGCM, AESGCMHSMIV} {
			if dek, err := OpenDEK(t.Context(), s.token, ring, s.id, envelope); err != nil || !bytes.Equal(dek, s.dek) {
				t.Errorf("%s in a ring of %s: %v", written, ring, err)
			}
		}
		envelope[1] ^= byte(AESGCM) ^ byte(AESGCMHSMIV)
		if _, err := OpenDEK(t.Context(), s.token, AESGCM, s.id, envelope); err == nil {
			t.Error("one was opened as the other")
		}
	}
}

// TestRandomNonce: a ring of hmac-kdf opens what was sealed in FIPS mode, and nothing that was changed in it. Both forms are
// made here without that mode, which a process cannot turn on.
func TestRandomNonce(t *testing.T) {
	t.Parallel()
	s := newSealed(t, HMACKDF, 32)
	for _, n := range []int{1, 32, MaxDEK} {
		dek := bytes.Repeat([]byte{0xd}, n)
		wrapped, err := sealRandomNonce(t.Context(), s.token, s.id, dek)
		if err != nil {
			t.Fatal(err)
		}
		if e, err := Parse(wrapped); err != nil || e.Profile != HMACKDFNonce || len(wrapped) != 2+SaltSize+NonceSize+n+TagSize {
			t.Errorf("%x, %v", wrapped, err)
		}
		got, err := OpenDEK(t.Context(), s.token, HMACKDF, s.id, wrapped)
		if err != nil || !bytes.Equal(got, dek) {
			t.Errorf("%d bytes: %x, %v", n, got, err)
		}
		again, err := sealRandomNonce(t.Context(), s.token, s.id, dek)
		if err != nil || bytes.Equal(again[2:2+SaltSize], wrapped[2:2+SaltSize]) || bytes.Equal(again[2+SaltSize:2+SaltSize+NonceSize], wrapped[2+SaltSize:2+SaltSize+NonceSize]) {
			t.Errorf("salt or nonce twice: %x and %x, %v", wrapped, again, err)
		}
		for i := range wrapped {
			changed := bytes.Clone(wrapped)
			changed[i] ^= 1
			if dek, err := OpenDEK(t.Context(), s.token, HMACKDF, s.id, changed); !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrUnauthentic) || dek != nil {
				t.Fatalf("byte %d changed: %x, %v", i, dek, err)
			}
		}
	}
	for _, n := range []int{0, MaxDEK + 1} {
		if _, err := sealRandomNonce(t.Context(), s.token, s.id, make([]byte, n)); !errors.Is(err, ErrDEKSize) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}
