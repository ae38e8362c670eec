package envelope

import (
	"bytes"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The grammar of FORMAT.md as an expression; the checksum of our own versions it cannot say.
var keyIDGrammar = regexp.MustCompile(`\A[a-z0-9.-]{1,63}/(hk1-[0-9a-f]{12}-[0-9a-f]{16}-[0-9a-f]{8}|x([0-9a-f]{2}){0,64})/[0-9a-f]{16}\z`)

const anyKeyID = "kube-secrets/x6b6579/0123456789abcdef"

// FuzzParseKeyID: what ParseKeyID accepts, String makes again, and it is in the grammar.
func FuzzParseKeyID(f *testing.F) {
	own, err := ckaID(noon, [idRandom]byte{1})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(anyKeyID)
	f.Add("r/" + string(own) + "/0123456789abcdef")
	f.Add("r/x/0123456789abcdef")
	f.Add("r/x0/0123456789ABCDEF")
	f.Add("\xff/x/0123456789abcdef")
	f.Add(anyKeyID + "/hold")
	f.Add("r/x/hold")
	f.Fuzz(func(t *testing.T, text string) {
		id, err := ParseKeyID(text)
		of, hold, usedErr := ParseUsedKeyID(text)
		switch {
		case usedErr != nil && (err == nil || hold || !of.IsZero() || !errors.Is(usedErr, ErrUnknownKey)),
			usedErr == nil && hold && (err == nil || of.HoldString() != text),
			usedErr == nil && !hold && (err != nil || of != id):
			t.Fatalf("ParseUsedKeyID(%q) = %v, %v, %v, and ParseKeyID %v, %v", text, of, hold, usedErr, id, err)
		}
		if err != nil {
			if !errors.Is(err, ErrUnknownKey) || !id.IsZero() {
				t.Fatalf("ParseKeyID(%q) = %v, %v", text, id, err)
			}
			return
		}
		if id.String() != text || id.IsZero() || len(text) > MaxKeyID || !keyIDGrammar.MatchString(text) {
			t.Fatalf("%q was accepted and is %q", text, id)
		}
	})
}

// FuzzVersionOf: a CKA_ID can be told from its version, ours and foreign ones cannot be mistaken for each other, and
// every version can stand in a key_id.
func FuzzVersionOf(f *testing.F) {
	own, err := ckaID(noon, [idRandom]byte{1})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own)
	f.Add(own[:len(own)-1])
	f.Add(bytes.ToUpper(own))
	f.Add([]byte{})
	f.Add([]byte("x00"))
	f.Add(make([]byte, 65))
	f.Fuzz(func(t *testing.T, ckaIDBytes []byte) {
		at, ours := ActivationOf(ckaIDBytes)
		version, err := VersionOf(ckaIDBytes)
		if err != nil {
			if len(ckaIDBytes) <= maxForeignID || ours {
				t.Fatalf("VersionOf(%x): %v", ckaIDBytes, err)
			}
			return
		}
		if ours != (version == string(ckaIDBytes)) || ours == at.IsZero() {
			t.Fatalf("%x: ours %v, activation %v, version %q", ckaIDBytes, ours, at, version)
		}
		if raw, isForeign := strings.CutPrefix(version, "x"); isForeign == ours || isForeign && len(raw) != 2*len(ckaIDBytes) {
			t.Fatalf("%x: version %q", ckaIDBytes, version)
		}
		id := KeyID{Ring: "r", Version: version}
		if parsed, err := ParseKeyID(id.String()); err != nil || parsed != id {
			t.Fatalf("ParseKeyID(%q) = %v, %v", id, parsed, err)
		}
		if !activationOfID(id).Equal(at) {
			t.Fatalf("%q tells the activation %v, its CKA_ID %v", id, activationOfID(id), at)
		}
	})
}

func TestNewCKAID(t *testing.T) {
	t.Parallel()
	at := noon.Add(1234567 * time.Nanosecond)
	one, err1 := NewCKAID(at)
	two, err2 := NewCKAID(at)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(one, two) {
		t.Error("two CKA_IDs of one instant are equal")
	}
	if got, ok := ActivationOf(one); !ok || !got.Equal(at.Truncate(time.Millisecond)) || got.Location() != time.UTC {
		t.Errorf("ActivationOf(%s) = %v, %v; want %v to the millisecond, in UTC", one, got, ok, at)
	}
	if len(one) != 42 || strings.IndexFunc(string(one), func(r rune) bool { return r < '!' || r > '~' }) >= 0 {
		t.Errorf("%q is not 42 bytes of printable ASCII", one)
	}
	for _, bad := range []time.Time{time.UnixMilli(-1), {}, time.UnixMilli(1 << 48)} {
		if id, err := NewCKAID(bad); err == nil {
			t.Errorf("NewCKAID(%v) = %s", bad, id)
		}
	}
}

// TestChangedCKAIDIsForeign: no single changed byte of a CKA_ID of ours gives another of ours.
func TestChangedCKAIDIsForeign(t *testing.T) {
	t.Parallel()
	own, err := ckaID(noon, [idRandom]byte{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	for i := range own {
		for _, c := range []byte("0123456789abcdef-AFx\x00 \xff") {
			changed := bytes.Clone(own)
			changed[i] = c
			if at, ours := ActivationOf(changed); ours && c != own[i] {
				t.Errorf("%q passes as ours, active at %v", changed, at)
			}
		}
	}
}

// anID draws key_ids of one ring from so few values that equal parts are common.
func anID() *rapid.Generator[KeyID] {
	return rapid.Custom(func(t *rapid.T) KeyID {
		id := KeyID{Ring: "r", Fingerprint: [FingerprintSize]byte{rapid.ByteRange(0, 2).Draw(t, "fingerprint")}}
		raw := []byte{rapid.ByteRange(0, 2).Draw(t, "foreign")}
		if rapid.Bool().Draw(t, "ours") {
			at := time.UnixMilli(rapid.SampledFrom([]int64{0, 9, 10, 255, 256, 1 << 40}).Draw(t, "activation"))
			var err error
			if raw, err = ckaID(at, [idRandom]byte{rapid.ByteRange(0, 2).Draw(t, "random")}); err != nil {
				t.Fatal(err)
			}
		}
		var err error
		if id.Version, err = VersionOf(raw); err != nil {
			t.Fatal(err)
		}
		return id
	})
}

// TestOrderIsTotal: two nodes that see the same keys put them in the same order.
func TestOrderIsTotal(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := anID().Draw(t, "a"), anID().Draw(t, "b"), anID().Draw(t, "c")
		ab, ba := compareIDs(a, b), compareIDs(b, a)
		if ab != -ba || (ab == 0) != (a == b) {
			t.Fatalf("compare(a, b) = %d, compare(b, a) = %d, equal: %v", ab, ba, a == b)
		}
		if ab <= 0 && compareIDs(b, c) <= 0 && compareIDs(a, c) > 0 {
			t.Fatal("a <= b <= c, and a > c")
		}
		if activationOfID(a).Before(activationOfID(b)) && ab >= 0 {
			t.Fatal("an earlier activation does not come first")
		}
	})
}

// activationOfID is the activation time that a key_id carries; zero: always.
func activationOfID(id KeyID) time.Time {
	at, _ := ActivationOf([]byte(id.Version))
	return at
}
