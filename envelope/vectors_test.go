package envelope

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"testing"
)

// octets are bytes that vectors.json writes in hex.
type octets []byte

func (o *octets) UnmarshalText(text []byte) (err error) {
	*o, err = hex.DecodeString(string(text))
	return err
}

// outcome is what every vector says of what must become of it.
type outcome struct {
	Name, Expect, Reason string
}

// accepted tells which of the two is expected.
func (o outcome) accepted(t *testing.T) bool {
	t.Helper()
	if o.Expect != "accept" && o.Expect != "reject" || (o.Expect == "reject") != (o.Reason != "") {
		t.Fatalf("expect %q, reason %q", o.Expect, o.Reason)
	}
	return o.Expect == "accept"
}

type vectors struct {
	Comment      string
	Fingerprints []struct {
		outcome
		Profile     string
		Key         octets
		Fingerprint octets
	}
	CKAIDs []struct {
		outcome
		CKAID       octets `json:"cka_id"`
		ActivatesMS *int64 `json:"activates_ms"`
		Emergency   bool
		Version     string
	}
	KeyIDs []struct {
		outcome
		KeyID       string `json:"key_id"`
		Hold        bool
		Ring        string
		Version     string
		Fingerprint octets
	}
	HoldKeys []struct {
		outcome
		Profile string
		Key     octets
		Day     Day
		HoldKey octets `json:"hold_key"`
	}
	Envelopes []envelopeVector
}

type envelopeVector struct {
	outcome
	Profile    string
	Key        octets
	KeyID      string `json:"key_id"`
	Unique     octets
	DEK        octets
	Associated octets
	HoldKey    octets `json:"hold_key"`
	KDFInput   octets `json:"kdf_input"`
	OneTimeKey octets `json:"one_time_key"`
	Envelope   octets
}

func readVectors(t testing.TB) vectors {
	t.Helper()
	text, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	if len(v.Fingerprints) == 0 || len(v.CKAIDs) == 0 || len(v.KeyIDs) == 0 || len(v.HoldKeys) == 0 || len(v.Envelopes) == 0 {
		t.Fatal("vectors.json lacks a part")
	}
	return v
}

// TestVectorsAreTheScripts: the file is what the independent script makes, not what this package would like.
func TestVectorsAreTheScripts(t *testing.T) {
	t.Parallel()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("NOT TESTED: there is no python3 here, so vectors.json was not compared with what vectors.py makes")
	}
	made, err := exec.CommandContext(t.Context(), python, "testdata/vectors.py").Output()
	if err != nil {
		t.Fatalf("running vectors.py: %v", err)
	}
	kept, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(made, kept) {
		t.Error("vectors.py makes another file than vectors.json: python3 testdata/vectors.py > testdata/vectors.json, and read the difference")
	}
}

func TestVectorsFingerprint(t *testing.T) {
	t.Parallel()
	for _, v := range readVectors(t).Fingerprints {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			profile, err := ParseProfile(v.Profile)
			if err != nil || !v.accepted(t) {
				t.Fatal(err, v.Expect)
			}
			if got := softFingerprint(profile, v.Key); !bytes.Equal(got[:], v.Fingerprint) {
				t.Errorf("fingerprint %x, want %x", got, []byte(v.Fingerprint))
			}
		})
	}
}

func TestVectorsCKAID(t *testing.T) {
	t.Parallel()
	for _, v := range readVectors(t).CKAIDs {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			version, err := VersionOf(v.CKAID)
			if accepted := v.accepted(t); version != v.Version || (err == nil) != accepted {
				t.Errorf("VersionOf = %q, %v; want %q, %s", version, err, v.Version, v.Expect)
			}
			at, ours := ActivationOf(v.CKAID)
			if ours != (v.ActivatesMS != nil) || ours && at.UnixMilli() != *v.ActivatesMS {
				t.Errorf("ActivationOf = %v, %v; want %v", at, ours, v.ActivatesMS)
			}
			if emergency := (KeyID{Version: version}).Emergency(); emergency != v.Emergency {
				t.Errorf("Emergency = %v, want %v", emergency, v.Emergency)
			}
			if ours {
				random, err := hex.DecodeString(string(v.CKAID[idTimeEnd+1 : idRandomEnd]))
				if made, err2 := ckaID(at, [idRandom]byte(random)); err != nil || err2 != nil || !bytes.Equal(made, v.CKAID) {
					t.Errorf("ckaID = %q, %v, %v; want %q", made, err, err2, []byte(v.CKAID))
				}
			}
		})
	}
}

func TestVectorsKeyID(t *testing.T) {
	t.Parallel()
	for _, v := range readVectors(t).KeyIDs {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			id, hold, err := ParseUsedKeyID(v.KeyID)
			if _, err := ParseKeyID(v.KeyID); (err == nil) != (v.accepted(t) && !v.Hold) {
				t.Errorf("ParseKeyID(%q): %v", v.KeyID, err)
			}
			if !v.accepted(t) {
				if !errors.Is(err, ErrUnknownKey) || !id.IsZero() || hold {
					t.Errorf("ParseUsedKeyID(%q) = %v, %v, %v; want ErrUnknownKey", v.KeyID, id, hold, err)
				}
				return
			}
			text := id.String()
			if hold {
				text = id.HoldString()
			}
			if err != nil || hold != v.Hold || id.Ring != v.Ring || id.Version != v.Version || !bytes.Equal(id.Fingerprint[:], v.Fingerprint) || text != v.KeyID {
				t.Errorf("ParseUsedKeyID(%q) = %v, %v, %v", v.KeyID, id, hold, err)
			}
		})
	}
}

func TestVectorsHoldKey(t *testing.T) {
	t.Parallel()
	for _, v := range readVectors(t).HoldKeys {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			profile, err := ParseProfile(v.Profile)
			if err != nil || !v.accepted(t) {
				t.Fatal(err, v.Expect)
			}
			token := newSoftToken("soft")
			token.held[KeyID{}] = v.Key
			if got, err := deriveHoldKey(t.Context(), token, profile, KeyID{}, v.Day); err != nil || !bytes.Equal(got[:], v.HoldKey) {
				t.Errorf("hold key %x, %v, want %x", got, err, []byte(v.HoldKey))
			}
		})
	}
}

func TestVectorsEnvelope(t *testing.T) {
	t.Parallel()
	for _, v := range readVectors(t).Envelopes {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			v.check(t)
		})
	}
}

func (v *envelopeVector) check(t *testing.T) {
	t.Helper()
	profile, err := ParseProfile(v.Profile)
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := ParseUsedKeyID(v.KeyID)
	if err != nil {
		t.Fatal(err)
	}
	token := newSoftToken("soft", softKey{Key{ID: id}, v.Key})
	token.nonce = func() []byte { return v.Unique }
	ring := NewRing(RingConfig{Name: id.Ring, Profile: profile}, softTokens{token})
	if err := ring.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	dek, err := ring.Open(t.Context(), v.KeyID, v.Envelope)
	if !v.accepted(t) {
		want := map[string]error{"malformed": ErrMalformed, "unauthentic": ErrUnauthentic}[v.Reason]
		if want == nil || !errors.Is(err, want) || dek != nil {
			t.Errorf("opening: %x, %v; want %s", dek, err, v.Reason)
		}
		if v.Reason == "malformed" && token.used(id) != 0 {
			t.Error("the token was asked about bytes that are malformed")
		}
		return
	}
	if err != nil || !bytes.Equal(dek, v.DEK) {
		t.Errorf("opening: %x, %v; want %x", dek, err, []byte(v.DEK))
	}
	parsed, err := Parse(v.Envelope)
	if err != nil || !bytes.Equal(parsed.Unique, v.Unique) {
		t.Errorf("parsed: %x, %v; want %x", parsed.Unique, err, []byte(v.Unique))
	}
	if got := associatedData(parsed.Profile, v.Unique, id); !bytes.Equal(got, v.Associated) {
		t.Errorf("associated data %x, want %x", got, []byte(v.Associated))
	}
	if parsed.Profile == Hold {
		v.checkHold(t, token, profile, id)
		return
	}
	if profile == HMACKDF {
		if got := kdfInput(parsed.Profile, v.Unique[:SaltSize]); !bytes.Equal(got, v.KDFInput) {
			t.Errorf("input of the derivation %x, want %x", got, []byte(v.KDFInput))
		}
		if got := softMAC(v.Key, v.KDFInput); !bytes.Equal(got[:], v.OneTimeKey) {
			t.Errorf("one-time key %x, want %x", got, []byte(v.OneTimeKey))
		}
	}
	if parsed.Profile == HMACKDFNonce { // Go makes the nonce: what it seals is never the same
		return
	}
	seal := func() ([]byte, error) { return sealWith(t.Context(), token, parsed.Profile, id, v.Unique, v.DEK) }
	if parsed.Profile == AESGCMHSMIV {
		seal = func() ([]byte, error) { return SealDEK(t.Context(), token, parsed.Profile, id, v.DEK) }
	}
	sealed, err := seal()
	if err != nil || !bytes.Equal(sealed, v.Envelope) {
		t.Errorf("sealing: %x, %v; want %x", sealed, err, []byte(v.Envelope))
	}
}

// checkHold compares what leads to the one-time key of an envelope of a hold. Go makes the nonce, so what it seals is never the
// same; it opens the vector without the HSM.
func (v *envelopeVector) checkHold(t *testing.T, token Token, profile Profile, id KeyID) {
	t.Helper()
	key := deriveHold(t, token, profile, id, Envelope{Unique: v.Unique}.Day())
	if !bytes.Equal(key[:], v.HoldKey) {
		t.Errorf("hold key %x, want %x", key, []byte(v.HoldKey))
	}
	if oneTime := holdOneTimeKey(&key, v.Unique); !bytes.Equal(oneTime[:], v.OneTimeKey) || oneTime != softMAC(key[:], v.KDFInput) {
		t.Errorf("one-time key %x, want %x", oneTime, []byte(v.OneTimeKey))
	}
	if dek, err := OpenHold(&key, id, v.Envelope); err != nil || !bytes.Equal(dek, v.DEK) {
		t.Errorf("opening without the HSM: %x, %v; want %x", dek, err, []byte(v.DEK))
	}
}
