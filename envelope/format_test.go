package envelope

import (
	"bytes"
	"errors"
	"testing"
)

// sized makes bytes that begin with a header and have n bytes in all.
func sized(version, profile byte, n int) []byte {
	b := make([]byte, max(n, 2))
	b[0], b[1] = version, profile
	return b[:n]
}

func TestParse(t *testing.T) {
	t.Parallel()
	const gcm, kdf = byte(AESGCM), byte(HMACKDF)
	own := func(size byte, n int) []byte {
		b := sized(1, byte(AESGCMHSMIV), n)
		b[2], b[4] = size, 1
		return b
	}
	const gcmRest, kdfRest, holdRest = 2 + NonceSize + TagSize, 2 + SaltSize + TagSize, 2 + 4 + SaltSize + NonceSize + TagSize
	for _, test := range []struct {
		name  string
		bytes []byte
		ok    bool
	}{
		{"nil", nil, false},
		{"one byte", sized(1, gcm, 1), false},
		{"header only", sized(1, gcm, 2), false},
		{"gcm: no DEK", sized(1, gcm, gcmRest), false},
		{"gcm: DEK of 1", sized(1, gcm, gcmRest+1), true},
		{"gcm: DEK of 32", sized(1, gcm, gcmRest+32), true},
		{"gcm: DEK of 512", sized(1, gcm, gcmRest+MaxDEK), true},
		{"gcm: DEK of 513", sized(1, gcm, gcmRest+MaxDEK+1), false},
		{"kdf: no DEK", sized(1, kdf, kdfRest), false},
		{"kdf: DEK of 1", sized(1, kdf, kdfRest+1), true},
		{"kdf: DEK of 512", sized(1, kdf, kdfRest+MaxDEK), true},
		{"kdf: DEK of 513", sized(1, kdf, kdfRest+MaxDEK+1), false},
		{"longest that is looked at", sized(1, gcm, MaxEnvelope), false},
		{"longer", sized(1, gcm, MaxEnvelope+1), false},
		{"format version 0", sized(0, gcm, gcmRest+32), false},
		{"format version 2", sized(2, gcm, gcmRest+32), false},
		{"format version 'k', as in k8s:enc", sized('k', gcm, gcmRest+32), false},
		{"profile 0", sized(1, 0, gcmRest+32), false},
		{"hsm-iv: no DEK", own(12, gcmRest+1), false},
		{"hsm-iv: DEK of 1", own(12, gcmRest+2), true},
		{"hsm-iv: DEK of 512", own(12, gcmRest+1+MaxDEK), true},
		{"hsm-iv: DEK of 513", own(12, gcmRest+2+MaxDEK), false},
		{"hsm-iv: 16 bytes, no DEK", own(16, gcmRest+5), false},
		{"hsm-iv: 16 bytes, DEK of 1", own(16, gcmRest+6), true},
		{"hsm-iv: 16 bytes, DEK of 512", own(16, gcmRest+5+MaxDEK), true},
		{"hsm-iv: 16 bytes, DEK of 513", own(16, gcmRest+6+MaxDEK), false},
		{"hsm-iv: 0 bytes", own(0, gcmRest+32), false},
		{"hsm-iv: 11 bytes", own(11, gcmRest+32), false},
		{"hsm-iv: 14 bytes", own(14, gcmRest+32), false},
		{"hsm-iv: 255 bytes", own(255, 400), false},
		{"hsm-iv: header only", sized(1, 3, 2), false},
		{"hsm-iv: nonce of zeros", append([]byte{1, 3, 12}, make([]byte, 60)...), false},
		{"hold: no DEK", sized(1, byte(Hold), holdRest), false},
		{"hold: DEK of 1", sized(1, byte(Hold), holdRest+1), true},
		{"hold: DEK of 512", sized(1, byte(Hold), holdRest+MaxDEK), true},
		{"hold: DEK of 513", sized(1, byte(Hold), holdRest+MaxDEK+1), false},
		{"hold: half a day", sized(1, byte(Hold), 4), false},
		{"hold: the last day", append([]byte{1, byte(Hold), 0, 0xff, 0xff, 0xff}, make([]byte, 92)...), true},
		{"hold: a day too late", append([]byte{1, byte(Hold), 1, 0, 0, 0}, make([]byte, 92)...), false},
		{"profile 6", sized(1, 6, gcmRest+32), false},
		{"profile 255", sized(1, 255, gcmRest+32), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			e, err := Parse(test.bytes)
			if (err == nil) != test.ok || err != nil && !errors.Is(err, ErrMalformed) {
				t.Fatalf("Parse: %v; accepted should be %v", err, test.ok)
			}
			if test.ok && !bytes.Equal(e.Marshal(), test.bytes) {
				t.Errorf("Marshal gave %x", e.Marshal())
			}
		})
	}
}

// TestEveryEnvelopeFits: the API server takes at most 1 kB as an encrypted DEK source.
func TestEveryEnvelopeFits(t *testing.T) {
	t.Parallel()
	for _, p := range append(Profiles(), HMACKDFNonce, Hold) {
		if n := headerSize + 1 + max(p.uniqueSize(), LongNonceSize) + MaxDEK + TagSize; n > MaxEnvelope || MaxEnvelope > 1024 {
			t.Errorf("%s: the longest envelope has %d bytes", p, n)
		}
	}
}

// TestUniqueDoesNotReachIntoSealed: an append to the nonce must not overwrite the ciphertext behind it.
func TestUniqueDoesNotReachIntoSealed(t *testing.T) {
	t.Parallel()
	own := sized(1, byte(AESGCMHSMIV), 64)
	own[2], own[3] = LongNonceSize, 1
	for _, b := range [][]byte{sized(1, byte(AESGCM), 64), own} {
		e, err := Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		_ = append(e.Unique, 0xff)
		if e.Sealed[0] != 0 {
			t.Error("appending to Unique changed Sealed")
		}
	}
}

func TestProfileNames(t *testing.T) {
	t.Parallel()
	for _, p := range Profiles() {
		if got, err := ParseProfile(p.String()); err != nil || got != p {
			t.Errorf("ParseProfile(%q) = %v, %v", p, got, err)
		}
	}
	for _, name := range []string{"", "AES-GCM", "aes", "profile 4", Profile(4).String(), HMACKDFNonce.String()} {
		if p, err := ParseProfile(name); err == nil {
			t.Errorf("ParseProfile(%q) = %v", name, p)
		}
	}
}

// FuzzParse: what Parse accepts, Marshal makes again, and it accepts nothing of another version, profile or length.
func FuzzParse(f *testing.F) {
	f.Add([]byte{})
	f.Add(sized(1, byte(AESGCM), 62))
	f.Add(sized(1, byte(HMACKDF), 82))
	f.Add(sized(1, byte(HMACKDFNonce), 94))
	f.Add(append([]byte{1, 3, 12, 1}, make([]byte, 59)...))
	f.Add(append([]byte{1, 3, 16, 1}, make([]byte, 63)...))
	f.Add(sized(1, byte(Hold), 98))
	f.Add(append([]byte{1, byte(Hold), 1, 0, 0, 0}, make([]byte, 92)...))
	f.Add(sized(1, 6, 62))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		e, err := Parse(b)
		if !bytes.Equal(b, before) {
			t.Fatal("Parse changed its input")
		}
		if err != nil {
			if !errors.Is(err, ErrMalformed) || e.Profile != 0 || e.Unique != nil || e.Sealed != nil {
				t.Fatalf("Parse = %v, %v", e, err)
			}
			return
		}
		if !bytes.Equal(e.Marshal(), b) {
			t.Fatalf("%x was marshalled as %x", b, e.Marshal())
		}
		n := len(e.Sealed) - TagSize
		if b[0] != 1 || e.Profile != Profile(b[1]) || n < 1 || n > MaxDEK {
			t.Fatalf("%x was accepted", b)
		}
		if e.Profile == AESGCMHSMIV && (len(e.Unique) == 12 || len(e.Unique) == 16) && len(e.Unique) == int(b[2]) && !isZero(e.Unique) {
			return
		}
		switch want := map[Profile]int{AESGCM: 12, HMACKDF: 32, HMACKDFNonce: 44, Hold: 48}[e.Profile]; {
		case e.Profile == Hold && (b[2] != 0 || string(b[38:46]) == "hsm-kms/"):
			t.Fatalf("%x was accepted with its day or nonce", b)
		case want == 0, len(e.Unique) != want:
			t.Fatalf("%x was accepted with %d bytes of nonce or salt", b, len(e.Unique))
		}
	})
}
