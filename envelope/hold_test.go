package envelope

import (
	"bytes"
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// holdRing is a ring of the profile with one key, and its token.
func holdRing(t *testing.T, profile Profile, seed string) (*Ring, *softToken, KeyID) {
	t.Helper()
	key := newSoftKey(profile, "r", []byte("one"), seed)
	token := newSoftToken("soft", key)
	ring := NewRing(RingConfig{Name: "r", Profile: profile}, softTokens{token})
	if err := ring.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	return ring, token, key.ID
}

func deriveHold(t *testing.T, token Token, profile Profile, id KeyID, day Day) HoldKey {
	t.Helper()
	key, err := DeriveHoldKey(t.Context(), token, profile, id, day)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestHoldKey: every node that has the KEK derives the same key, whatever its token can do, and another for another day or KEK.
func TestHoldKey(t *testing.T) {
	t.Parallel()
	keys := map[HoldKey]string{}
	for _, profile := range []Profile{AESGCM, HMACKDF} {
		for _, seed := range []string{"one", "two"} {
			for _, day := range []Day{0, 1, 20000, MaxDay} {
				_, token, id := holdRing(t, profile, seed)
				key := deriveHold(t, token, profile, id, day)
				name := fmt.Sprint(profile, " ", seed, " ", day)
				if other := keys[key]; other != "" || key == (HoldKey{}) {
					t.Errorf("%s gives the key of %q", name, other)
				}
				keys[key] = name
				if profile == AESGCM && key != deriveHold(t, token, AESGCMHSMIV, id, day) {
					t.Errorf("%s: a ring of aes-gcm-hsm-iv derives another key", name)
				}
			}
		}
	}
}

// TestHoldKeyOfAFaultyToken: no key is derived from something that is no secret, or that another answer would contradict.
func TestHoldKeyOfAFaultyToken(t *testing.T) {
	t.Parallel()
	calls := 0
	for name, c := range map[string]struct {
		profile Profile
		spoil   func(*softToken)
	}{
		"GCM returns the plaintext": {AESGCM, func(s *softToken) {
			s.encrypt = func(_ cipher.AEAD, _, _, in []byte) ([]byte, error) {
				return append(bytes.Clone(in), make([]byte, TagSize)...), nil
			}
		}},
		"ECB returns the plaintext": {AESGCMHSMIV, func(s *softToken) { s.blocks = bytes.Clone }},
		"ECB is short":              {AESGCMHSMIV, func(s *softToken) { s.blocks = func(in []byte) []byte { return in[:16] } }},
		"the HMAC is of zeros":      {HMACKDF, func(s *softToken) { s.mac = func(_, _ []byte) (mac [MACSize]byte) { return mac } }},
		"two answers differ": {HMACKDF, func(s *softToken) {
			s.mac = func(key, data []byte) [MACSize]byte {
				if bytes.HasPrefix(data, []byte(holdDomain)) {
					calls++
					data = append(data, byte(calls))
				}
				return softMAC(key, data)
			}
		}},
		"GCM under another key":  {AESGCM, anotherKey},
		"ECB under another key":  {AESGCMHSMIV, anotherKey},
		"HMAC under another key": {HMACKDF, anotherKey},
	} {
		t.Run(name, func(t *testing.T) {
			_, token, id := holdRing(t, c.profile, "one")
			c.spoil(token)
			if key, err := DeriveHoldKey(t.Context(), token, c.profile, id, 7); !errors.Is(err, ErrSelfTest) || key != (HoldKey{}) {
				t.Errorf("%x, %v; want ErrSelfTest", key, err)
			}
		})
	}
}

// anotherKey is what a handle does that names another key meanwhile: all operations agree with each other.
func anotherKey(s *softToken) {
	for id := range s.held {
		s.held[id] = bytes.Repeat([]byte{9}, 32)
	}
}

// TestHoldKeyPassesErrorsOn: a token that is away, a key that is unknown, and a day that no envelope can have.
func TestHoldKeyPassesErrorsOn(t *testing.T) {
	t.Parallel()
	for _, profile := range Profiles() {
		_, token, id := holdRing(t, profile, "one")
		_, err := DeriveHoldKey(t.Context(), token, profile, id, MaxDay+1)
		if !errors.Is(err, ErrMalformed) || token.used(id) != 0 {
			t.Errorf("%s: a day too late: %v, %d uses", profile, err, token.used(id))
		}
		if _, err := DeriveHoldKey(t.Context(), token, profile, KeyID{Ring: "r"}, 1); !errors.Is(err, ErrUnknownKey) {
			t.Errorf("%s: an unknown key: %v", profile, err)
		}
		token.failWith(ErrUnavailable)
		if _, err := DeriveHoldKey(t.Context(), token, profile, id, 1); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: a token that is away: %v", profile, err)
		}
	}
}

// TestHoldOpens: what is sealed without the HSM opens without it and with it, under K/hold, in a ring of each profile.
func TestHoldOpens(t *testing.T) {
	t.Parallel()
	for _, profile := range Profiles() {
		for _, size := range []int{1, 32, MaxDEK} {
			ring, token, id := holdRing(t, profile, "one")
			const day = 20000
			key := deriveHold(t, token, profile, id, day)
			dek := bytes.Repeat([]byte{7}, size)
			sealed, err := SealHold(&key, id, day, dek)
			if err != nil {
				t.Fatal(err)
			}
			if e, err := Parse(sealed); err != nil || e.Day() != day {
				t.Errorf("%s: day %d, %v", profile, e.Day(), err)
			}
			if got, err := OpenHold(&key, id, sealed); err != nil || !bytes.Equal(got, dek) {
				t.Errorf("%s: without the HSM: %x, %v", profile, got, err)
			}
			for name, open := range map[string]func(context.Context, string, []byte) ([]byte, error){
				"ring": ring.Open, "rings": NewRings(NewRing(RingConfig{Name: "other"}, softTokens{token}), ring).Open,
			} {
				if got, err := open(t.Context(), id.HoldString(), sealed); err != nil || !bytes.Equal(got, dek) {
					t.Errorf("%s: with the HSM, %s: %x, %v", profile, name, got, err)
				}
			}
			if ring.Floor() != id {
				t.Errorf("%s: the floor is %q", profile, ring.Floor())
			}
		}
	}
}

// TestHoldRefuses: an envelope of a hold opens as the one thing it is, or not at all, with the HSM and without it.
func TestHoldRefuses(t *testing.T) {
	t.Parallel()
	for _, profile := range Profiles() {
		ring, token, id := holdRing(t, profile, "one")
		token.add(newSoftKey(profile, "r", []byte("two"), "two"))
		if err := ring.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		two := newSoftKey(profile, "r", []byte("two"), "two").ID
		const day = 20000
		key := deriveHold(t, token, profile, id, day)
		sealed, err := SealHold(&key, id, day, make([]byte, 32))
		if err != nil {
			t.Fatal(err)
		}
		plain, err := ring.Seal(t.Context(), id, make([]byte, 32))
		if err != nil {
			t.Fatal(err)
		}
		with := func(at int, b ...byte) []byte { return slices.Concat(sealed[:at], b, sealed[at+len(b):]) }
		for name, c := range map[string]struct {
			keyID    string
			envelope []byte
			want     error
		}{
			"/hold taken from the key_id":      {id.String(), sealed, ErrMalformed},
			"/hold put on the key_id":          {id.HoldString(), plain, ErrMalformed},
			"another key":                      {two.HoldString(), sealed, ErrUnauthentic},
			"another day":                      {id.HoldString(), with(5, sealed[5]+1), ErrUnauthentic},
			"a day too late":                   {id.HoldString(), with(2, 1), ErrMalformed},
			"a salt changed":                   {id.HoldString(), with(6, sealed[6]^1), ErrUnauthentic},
			"a nonce changed":                  {id.HoldString(), with(38, sealed[38]^1), ErrUnauthentic},
			"a reserved nonce":                 {id.HoldString(), with(38, []byte("hsm-kms/")...), ErrMalformed},
			"a tag changed":                    {id.HoldString(), with(len(sealed)-1, sealed[len(sealed)-1]^1), ErrUnauthentic},
			"a ciphertext changed":             {id.HoldString(), with(50, sealed[50]^1), ErrUnauthentic},
			"cut by one byte":                  {id.HoldString(), sealed[:len(sealed)-1], ErrUnauthentic},
			"the day alone":                    {id.HoldString(), sealed[:6], ErrMalformed},
			"half a day":                       {id.HoldString(), sealed[:4], ErrMalformed},
			"no ciphertext":                    {id.HoldString(), with(0)[:66], ErrMalformed},
			"/hold twice":                      {id.HoldString() + "/hold", sealed, ErrUnknownKey},
			"the profile of the ring":          {id.String(), with(1, byte(profile)), nil},
			"the profile of the ring, /hold":   {id.HoldString(), with(1, byte(profile)), ErrMalformed},
			"a normal envelope made one of it": {id.HoldString(), slices.Concat([]byte{1, byte(Hold)}, plain[2:]), nil},
		} {
			got, err := ring.Open(t.Context(), c.keyID, c.envelope)
			if c.want == nil && (errors.Is(err, ErrMalformed) || errors.Is(err, ErrUnauthentic)) {
				continue // one of both, by chance
			}
			if !errors.Is(err, c.want) || got != nil {
				t.Errorf("%s: %s: %x, %v; want %v", profile, name, got, err, c.want)
			}
			if errors.Is(c.want, ErrUnauthentic) {
				used, _, _ := ParseUsedKeyID(c.keyID)
				if got, err := OpenHold(&key, used, c.envelope); !errors.Is(err, ErrUnauthentic) || got != nil {
					t.Errorf("%s: %s, without the HSM: %x, %v", profile, name, got, err)
				}
			}
		}
		if _, err := OpenHold(&key, id, plain); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: a normal envelope without the HSM: %v", profile, err)
		}
	}
}

func TestSealHoldRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		day Day
		dek []byte
	}{"no DEK": {1, nil}, "a DEK too long": {1, make([]byte, MaxDEK+1)}, "a day too late": {MaxDay + 1, make([]byte, 32)}} {
		if sealed, err := SealHold(&HoldKey{1}, KeyID{}, c.day, c.dek); !errors.Is(err, ErrMalformed) || sealed != nil {
			t.Errorf("%s: %x, %v", name, sealed, err)
		}
	}
}

func TestDayOf(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		at   time.Time
		want Day
	}{
		{time.Unix(0, 0), 0}, {time.Unix(86399, 999), 0}, {time.Unix(86400, 0), 1}, {time.Unix(-1, 0), 0},
		{noon, 20454}, {noon.In(time.FixedZone("east", 14*60*60)), 20454}, {time.Unix(1<<50, 0), MaxDay},
	} {
		if got := DayOf(c.at); got != c.want {
			t.Errorf("DayOf(%s) = %d, want %d", c.at, got, c.want)
		}
	}
}

func TestParseUsedKeyID(t *testing.T) {
	t.Parallel()
	k := foreignKey("one", "one").ID
	for text, want := range map[string]bool{k.String(): false, k.HoldString(): true} {
		if got := KeyOf(text); got != k.String() {
			t.Errorf("KeyOf(%q) = %q", text, got)
		}
		id, hold, err := ParseUsedKeyID(text)
		if id != k || hold != want || err != nil {
			t.Errorf("ParseUsedKeyID(%q) = %v, %v, %v", text, id, hold, err)
		}
	}
	for _, text := range []string{
		"", "/hold", "r/hold", k.Ring + "/" + k.Version + "/hold", k.String() + "/", k.String() + "/Hold", k.String() + "/hold/",
		k.String() + "//hold", k.String() + "/hold/hold", k.String() + "/held", "/hold" + k.String(),
	} {
		if got := KeyOf(text); got != text {
			t.Errorf("KeyOf(%q) = %q", text, got)
		}
		if id, hold, err := ParseUsedKeyID(text); !id.IsZero() || hold || !errors.Is(err, ErrUnknownKey) {
			t.Errorf("ParseUsedKeyID(%q) = %v, %v, %v", text, id, hold, err)
		}
	}
	if _, err := ParseKeyID(k.HoldString()); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("ParseKeyID takes the key_id of a hold: %v", err)
	}
}

// FuzzOpenHold: what is not sealed does not open. The seeds are an envelope, and what is nearly one. It is a vector, because
// the processes of a fuzz test must agree on it.
func FuzzOpenHold(f *testing.F) {
	all := readVectors(f).Envelopes
	v := all[slices.IndexFunc(all, func(v envelopeVector) bool { return v.HoldKey != nil && len(v.DEK) == 32 })]
	key, sealed := HoldKey(v.HoldKey), []byte(v.Envelope)
	id, _, err := ParseUsedKeyID(v.KeyID)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Add(sealed[:len(sealed)-1])
	f.Add(append(bytes.Clone(sealed), 0))
	f.Add(slices.Concat(sealed[:5], []byte{9}, sealed[6:]))
	f.Fuzz(func(t *testing.T, b []byte) {
		dek, err := OpenHold(&key, id, b)
		switch {
		case bytes.Equal(b, sealed) && (err != nil || len(dek) != 32):
			t.Fatalf("OpenHold = %x, %v", dek, err)
		case !bytes.Equal(b, sealed) && (dek != nil || !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrUnauthentic)):
			t.Fatalf("OpenHold(%x) = %x, %v", b, dek, err)
		}
	})
}
