package envelope

import (
	"bytes"
	"context"
	"crypto/cipher"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"
)

// broken is a way in which a token can misbehave.
type broken struct {
	name    string
	profile Profile
	breakIt func(*softToken)
	prove   bool // Prove, which is only a round trip, finds it too
}

// ctr is AES-GCM's encryption without its tag: what a token that does not check the tag does.
func ctr(aead cipher.AEAD, nonce, sealed []byte) []byte {
	body := sealed[:len(sealed)-TagSize]
	return aead.Seal(nil, nonce, body, nil)[:len(body)]
}

// openIf opens when same says that the tag will do.
func openIf(aead cipher.AEAD, nonce, associated, sealed []byte, same func(want, got []byte) bool) ([]byte, error) {
	plaintext := ctr(aead, nonce, sealed)
	want := aead.Seal(nil, nonce, plaintext, associated)
	if !same(want[len(plaintext):], sealed[len(plaintext):]) {
		return nil, errors.New("the tag differs")
	}
	return plaintext, nil
}

var brokenTokens = []broken{
	{"the nonce is ignored", AESGCM, func(s *softToken) {
		fixed := make([]byte, NonceSize)
		s.encrypt = func(a cipher.AEAD, _, ad, p []byte) ([]byte, error) { return a.Seal(nil, fixed, p, ad), nil }
		s.decrypt = func(a cipher.AEAD, _, ad, c []byte) ([]byte, error) { return a.Open(nil, fixed, c, ad) }
	}, false},
	{"the token makes a nonce of its own", AESGCM, func(s *softToken) {
		s.encrypt = func(a cipher.AEAD, n, ad, p []byte) ([]byte, error) {
			own := bytes.Clone(n)
			own[0] ^= 0xff
			return a.Seal(nil, own, p, ad), nil
		}
	}, true},
	{"the token writes its nonce back, as some HSMs do", AESGCM, func(s *softToken) {
		s.encrypt = func(a cipher.AEAD, n, ad, p []byte) ([]byte, error) {
			n[0] ^= 0xff
			return a.Seal(nil, n, p, ad), nil
		}
	}, true},
	{"plaintext comes back", AESGCM, func(s *softToken) {
		s.encrypt = func(a cipher.AEAD, n, ad, p []byte) ([]byte, error) {
			return append(bytes.Clone(p), a.Seal(nil, n, nil, ad)...), nil
		}
		s.decrypt = func(_ cipher.AEAD, _, _, c []byte) ([]byte, error) { return c[:len(c)-TagSize], nil }
	}, false},
	{"plaintext comes back, with a tag that is checked", AESGCM, func(s *softToken) {
		s.encrypt = func(a cipher.AEAD, n, ad, p []byte) ([]byte, error) {
			return append(bytes.Clone(p), a.Seal(nil, n, nil, append(bytes.Clone(ad), p...))...), nil
		}
		s.decrypt = func(a cipher.AEAD, n, ad, c []byte) ([]byte, error) {
			p := c[:len(c)-TagSize]
			_, err := a.Open(nil, n, c[len(p):], append(bytes.Clone(ad), p...))
			return bytes.Clone(p), err
		}
	}, false},
	{"associated data is ignored", AESGCM, func(s *softToken) {
		s.encrypt = func(a cipher.AEAD, n, _, p []byte) ([]byte, error) { return a.Seal(nil, n, p, nil), nil }
		s.decrypt = func(a cipher.AEAD, n, _, c []byte) ([]byte, error) { return a.Open(nil, n, c, nil) }
	}, false},
	{"associated data is cut after 32 bytes", AESGCM, func(s *softToken) {
		s.encrypt = func(a cipher.AEAD, n, ad, p []byte) ([]byte, error) { return a.Seal(nil, n, p, ad[:32]), nil }
		s.decrypt = func(a cipher.AEAD, n, ad, c []byte) ([]byte, error) { return a.Open(nil, n, c, ad[:32]) }
	}, false},
	{"the tag is not checked", AESGCM, func(s *softToken) {
		s.decrypt = func(a cipher.AEAD, n, _, c []byte) ([]byte, error) { return ctr(a, n, c), nil }
	}, false},
	{"12 bytes of the tag are checked", AESGCM, func(s *softToken) {
		s.decrypt = func(a cipher.AEAD, n, ad, c []byte) ([]byte, error) {
			return openIf(a, n, ad, c, func(want, got []byte) bool { return bytes.Equal(want[:12], got[:12]) })
		}
	}, false},
	{"a byte is missing", AESGCM, func(s *softToken) {
		s.encrypt = func(a cipher.AEAD, n, ad, p []byte) ([]byte, error) { return a.Seal(nil, n, p[1:], ad), nil }
	}, true},
	{"the output is padded to blocks", AESGCM, func(s *softToken) {
		s.encrypt = func(a cipher.AEAD, n, ad, p []byte) ([]byte, error) {
			return append(a.Seal(nil, n, p, ad), make([]byte, 16)...), nil
		}
	}, true},
	{"decryption gives something else", AESGCM, func(s *softToken) {
		s.decrypt = func(a cipher.AEAD, n, ad, c []byte) ([]byte, error) {
			p, err := a.Open(nil, n, c, ad)
			if err == nil {
				p[0] ^= 1
			}
			return p, err
		}
	}, true},
	{"decryption gives nothing and no error", AESGCM, func(s *softToken) {
		s.decrypt = func(cipher.AEAD, []byte, []byte, []byte) ([]byte, error) { return nil, nil }
	}, true},
	{"decryption always fails", AESGCM, func(s *softToken) {
		s.decrypt = func(cipher.AEAD, []byte, []byte, []byte) ([]byte, error) { return nil, errors.New("no") }
	}, true},
	{"the nonce is not the one that it tells", AESGCMHSMIV, func(s *softToken) {
		s.encrypt = func(a cipher.AEAD, n, ad, p []byte) ([]byte, error) {
			own := bytes.Clone(n)
			own[0] ^= 0xff
			return a.Seal(nil, own, p, ad), nil
		}
	}, true},
	{"the nonce is the same for every seal", AESGCMHSMIV, func(s *softToken) {
		s.nonce = func() []byte { return []byte("the same one") }
	}, false},
	{"the nonce is zero", AESGCMHSMIV, func(s *softToken) {
		s.nonce = func() []byte { return make([]byte, NonceSize) }
	}, true},
	{"the nonce is told and not used", AESGCMHSMIV, func(s *softToken) {
		s.encrypt = func(a cipher.AEAD, _, ad, p []byte) ([]byte, error) {
			return a.Seal(nil, []byte("the same one"), p, ad), nil
		}
		s.decrypt = func(a cipher.AEAD, _, ad, c []byte) ([]byte, error) {
			return a.Open(nil, []byte("the same one"), c, ad)
		}
	}, false},
	{"associated data is ignored", AESGCMHSMIV, func(s *softToken) {
		s.encrypt = func(a cipher.AEAD, n, _, p []byte) ([]byte, error) { return a.Seal(nil, n, p, nil), nil }
		s.decrypt = func(a cipher.AEAD, n, _, c []byte) ([]byte, error) { return a.Open(nil, n, c, nil) }
	}, false},
	{"the tag is not checked", AESGCMHSMIV, func(s *softToken) {
		s.decrypt = func(a cipher.AEAD, n, _, c []byte) ([]byte, error) { return ctr(a, n, c), nil }
	}, false},
	{"the HMAC is the same for every message", HMACKDF, func(s *softToken) {
		s.mac = func(key, _ []byte) [MACSize]byte { return softMAC(key, nil) }
	}, false},
	{"the HMAC is of the domain only", HMACKDF, func(s *softToken) {
		s.mac = func(key, data []byte) [MACSize]byte { return softMAC(key, data[:len(kdfDomain)]) }
	}, false},
	{"the HMAC is zeros", HMACKDF, func(s *softToken) {
		s.mac = func([]byte, []byte) [MACSize]byte { return [MACSize]byte{} }
	}, false},
	{"the HMAC changes from call to call", HMACKDF, func(s *softToken) {
		var calls atomic.Uint32
		s.mac = func(key, data []byte) [MACSize]byte {
			return softMAC(key, append(bytes.Clone(data), byte(calls.Add(1))))
		}
	}, true},
}

func TestSelfTestFindsBrokenTokens(t *testing.T) {
	t.Parallel()
	for _, b := range brokenTokens {
		t.Run(b.profile.String()+": "+b.name, func(t *testing.T) {
			t.Parallel()
			s := newSealed(t, b.profile, 32)
			b.breakIt(s.token)
			if err := SelfTest(t.Context(), s.token, b.profile, s.id); !errors.Is(err, ErrSelfTest) {
				t.Errorf("SelfTest: %v, want ErrSelfTest", err)
			}
			if err := Prove(t.Context(), s.token, b.profile, s.id); errors.Is(err, ErrSelfTest) != b.prove {
				t.Errorf("Prove: %v; finding it: %v", err, b.prove)
			}
		})
	}
}

// TestSelfTestPasses: and says what it costs.
func TestSelfTestPasses(t *testing.T) {
	t.Parallel()
	forProfiles(t, func(t *testing.T, profile Profile) {
		s := newSealed(t, profile, 32)
		before := s.token.used(s.id)
		if err := SelfTest(t.Context(), s.token, profile, s.id); err != nil {
			t.Fatal(err)
		}
		if n := s.token.used(s.id) - before; n != 8 {
			t.Errorf("the self-test took %d operations of the HSM, want 8", n)
		}
		before = s.token.used(s.id)
		if err := Prove(t.Context(), s.token, profile, s.id); err != nil {
			t.Fatal(err)
		}
		if n := s.token.used(s.id) - before; n != 2 {
			t.Errorf("Prove took %d operations of the HSM, want 2", n)
		}
	})
}

// hostileRings are names of rings that look like a part of something else, and every name that is possible.
func hostileRings() *rapid.Generator[string] {
	names := []string{"other", "another", "r", "x", "x00", "-", ".", "..", "hk1-", "all", "hsm-kms", "pending", "0123456789abcdef", strings.Repeat("a", maxRing)}
	return rapid.OneOf(rapid.SampledFrom(names), rapid.StringMatching(`[a-z0-9.-]{1,63}`))
}

// TestSelfTestPassesForEveryRing: no name of a ring, and no CKA_ID, is what the self-test compares with.
func TestSelfTestPassesForEveryRing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		profile := rapid.SampledFrom(Profiles()).Draw(t, "profile")
		ckaID := rapid.SliceOfN(rapid.Byte(), 0, maxForeignID).Draw(t, "CKA_ID")
		key := newSoftKey(profile, hostileRings().Draw(t, "ring"), ckaID, "material")
		token := newSoftToken("a", key)
		if err := SelfTest(t.Context(), token, profile, key.ID); err != nil {
			t.Fatalf("%s: %v", key.ID, err)
		}
		if parsed, err := ParseKeyID(key.ID.String()); err != nil || parsed != key.ID {
			t.Fatalf("%s is read as %v: %v", key.ID, parsed, err)
		}
		deaf := &relabelled{Token: token, real: key.ID}
		other := key.ID
		other.Ring = hostileRings().Filter(func(name string) bool { return name != key.ID.Ring }).Draw(t, "other ring")
		envelope, err := SealDEK(t.Context(), token, profile, key.ID, []byte("dek"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := OpenDEK(t.Context(), deaf, profile, other, envelope); !errors.Is(err, ErrUnauthentic) {
			t.Fatalf("an envelope of %s as of %s: %v", key.ID, other, err)
		}
	})
}

// TestSelfTestOfATokenThatIsAway: an HSM that cannot be asked has not failed the test, at whichever operation it goes.
func TestSelfTestOfATokenThatIsAway(t *testing.T) {
	t.Parallel()
	forProfiles(t, func(t *testing.T, profile Profile) {
		for _, away := range []error{ErrUnavailable, ErrBusy, context.DeadlineExceeded, ErrUnknownKey} {
			for operation := range 8 {
				s := newSealed(t, profile, 32)
				going := &leaving{Token: s.token, err: away}
				going.left.Store(int64(operation))
				if err := SelfTest(t.Context(), going, profile, s.id); !errors.Is(err, away) || errors.Is(err, ErrSelfTest) {
					t.Errorf("%v at operation %d: SelfTest says %v", away, operation, err)
				}
			}
		}
	})
}

// leaving is a token that works a few times more and then fails with err.
type leaving struct {
	Token
	left atomic.Int64
	err  error
}

func (l *leaving) gone() error {
	if l.left.Add(-1) < 0 {
		return l.err
	}
	return nil
}

func (l *leaving) EncryptGCM(ctx context.Context, id KeyID, nonce *[NonceSize]byte, associated, plaintext []byte) ([]byte, error) {
	if err := l.gone(); err != nil {
		return nil, err
	}
	return l.Token.EncryptGCM(ctx, id, nonce, associated, plaintext)
}

func (l *leaving) DecryptGCM(ctx context.Context, id KeyID, nonce, associated, sealed []byte) ([]byte, error) {
	if err := l.gone(); err != nil {
		return nil, err
	}
	return l.Token.DecryptGCM(ctx, id, nonce, associated, sealed)
}

func (l *leaving) EncryptOwnNonce(ctx context.Context, id KeyID, associated func(int) []byte, plaintext []byte) (nonce, sealed []byte, err error) {
	if err := l.gone(); err != nil {
		return nil, nil, err
	}
	return l.Token.EncryptOwnNonce(ctx, id, associated, plaintext)
}

func (l *leaving) MAC(ctx context.Context, id KeyID, data []byte) ([MACSize]byte, error) {
	if err := l.gone(); err != nil {
		return [MACSize]byte{}, err
	}
	return l.Token.MAC(ctx, id, data)
}
