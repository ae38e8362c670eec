package envelope

import (
	"errors"
	"testing"
)

func TestFingerprintNamesTheMaterial(t *testing.T) {
	t.Parallel()
	seen := map[[FingerprintSize]byte]string{}
	for _, profile := range profiles {
		for _, seed := range []string{"a", "b", "c"} {
			one, copied := newSoftKey(profile, "r", []byte("1"), seed), newSoftKey(profile, "other", []byte("2"), seed)
			if one.ID.Fingerprint != copied.ID.Fingerprint {
				t.Errorf("%s: the fingerprint depends on ring or CKA_ID", profile)
			}
			if other := seen[one.ID.Fingerprint]; other != "" && profile != AESGCMHSMIV {
				t.Errorf("%s/%s has the fingerprint of %s", profile, seed, other)
			}
			seen[one.ID.Fingerprint] = profile.String() + "/" + seed
		}
	}
}

// TestOneFingerprintForBothAESProfiles: a ring may go from one to the other, and keeps its key_ids.
func TestOneFingerprintForBothAESProfiles(t *testing.T) {
	t.Parallel()
	for _, seed := range []string{"a", "b"} {
		by := map[Profile]KeyID{}
		for _, profile := range profiles {
			by[profile] = newSoftKey(profile, "r", []byte("1"), seed).ID
		}
		if by[AESGCM] != by[AESGCMHSMIV] || by[AESGCM] == by[HMACKDF] {
			t.Errorf("%v", by)
		}
	}
	for _, wrong := range [][]byte{nil, make([]byte, 31), make([]byte, 48), FingerprintBlocks()} {
		if fp, err := FingerprintECB(wrong); !errors.Is(err, ErrSelfTest) {
			t.Errorf("%x: %x, %v", wrong, fp, err)
		}
	}
}

// TestFingerprintOfABrokenToken: an answer that every key would give names no key.
func TestFingerprintOfABrokenToken(t *testing.T) {
	t.Parallel()
	probe := NewFingerprintProbe()
	if len(probe.Associated) == 0 {
		t.Error("the probe has no associated data: some tokens abort on none")
	}
	for _, n := range []int{0, TagSize, 32, 32 + TagSize - 1, 32 + TagSize + 1} {
		if fp, err := FingerprintGCM(append([]byte{1}, make([]byte, n)...)[:n]); !errors.Is(err, ErrSelfTest) {
			t.Errorf("%d bytes: %x, %v", n, fp, err)
		}
	}
	if fp, err := FingerprintGCM(append(probe.Plaintext, "a tag of 16 byte"...)); !errors.Is(err, ErrSelfTest) {
		t.Errorf("the plaintext as ciphertext: %x, %v", fp, err)
	}
	if fp, err := FingerprintMAC([MACSize]byte{}); !errors.Is(err, ErrSelfTest) {
		t.Errorf("zeros: %x, %v", fp, err)
	}
}

// TestFingerprintDoesNotPublishKeyStream: the fingerprint of an AES key is a hash of what the probe gave, not a piece of it.
func TestFingerprintDoesNotPublishKeyStream(t *testing.T) {
	t.Parallel()
	probe := NewFingerprintProbe()
	raw := softGCM(make([]byte, 32), NonceSize).Seal(nil, probe.Nonce[:], probe.Plaintext, probe.Associated)
	fp, err := FingerprintGCM(raw)
	if err != nil || fp == [FingerprintSize]byte(raw[:FingerprintSize]) {
		t.Errorf("%x, %v", fp, err)
	}
	raw[len(raw)-1] ^= 1 // the tag is not part of it
	if again, err := FingerprintGCM(raw); err != nil || again != fp {
		t.Errorf("with another tag: %x, %v; want %x", again, err, fp)
	}
	raw[31] ^= 1
	if again, err := FingerprintGCM(raw); err != nil || again == fp {
		t.Errorf("the second block does not count: %x, %v", again, err)
	}
}
