package hsm

import (
	"encoding/binary"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// teller is a token that tells the attributes of one key, and fails for those in fails, as tokens do: the whole request.
type teller struct {
	p11.API
	values   map[uint][]byte
	fails    map[uint]p11.RV
	requests int
}

func (t *teller) Attribute(s p11.Session, o p11.Object, attribute uint) ([]byte, error) {
	told, err := t.Attributes(s, o, []uint{attribute})
	return told[attribute], err
}

func (t *teller) Attributes(_ p11.Session, _ p11.Object, attributes []uint) (map[uint][]byte, error) {
	t.requests++
	told := map[uint][]byte{}
	for _, attribute := range attributes {
		if rv, fails := t.fails[attribute]; fails {
			return nil, &p11.Error{Function: "C_GetAttributeValue", RV: rv}
		}
		told[attribute] = t.values[attribute]
	}
	return told, nil
}

// sound are the attributes of a key as it should be.
func sound() map[uint][]byte {
	number := func(n uint64) []byte { return binary.NativeEndian.AppendUint64(nil, n) }
	return map[uint][]byte{
		pkcs11.CKA_ID: []byte("id"), pkcs11.CKA_PRIVATE: {1}, pkcs11.CKA_SENSITIVE: {1}, pkcs11.CKA_EXTRACTABLE: {0},
		pkcs11.CKA_ALWAYS_SENSITIVE: {1}, pkcs11.CKA_NEVER_EXTRACTABLE: {1}, pkcs11.CKA_LOCAL: {1},
		pkcs11.CKA_KEY_TYPE: number(pkcs11.CKK_AES), pkcs11.CKA_VALUE_LEN: number(32),
	}
}

// A key is described in one request. What a token does not tell costs one request for each attribute, takes nothing
// else with it, and is taken for the worse.
func TestDescribe(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name     string
		fails    map[uint]p11.RV
		requests int
		refused  bool
	}{
		{"all told", nil, 1, false},
		{"length unknown", map[uint]p11.RV{pkcs11.CKA_VALUE_LEN: pkcs11.CKR_ATTRIBUTE_TYPE_INVALID}, 10, false},
		{"origin not told", map[uint]p11.RV{pkcs11.CKA_LOCAL: pkcs11.CKR_ATTRIBUTE_SENSITIVE}, 10, true},
		{"extractable unknown", map[uint]p11.RV{pkcs11.CKA_EXTRACTABLE: pkcs11.CKR_ATTRIBUTE_TYPE_INVALID}, 10, true},
		{"type unknown", map[uint]p11.RV{pkcs11.CKA_KEY_TYPE: pkcs11.CKR_ATTRIBUTE_TYPE_INVALID}, 10, true},
	} {
		token := &teller{values: sound(), fails: tc.fails}
		reader := &keyReader{api: token, ring: "ring", profile: envelope.AESGCM}
		told, err := reader.describe(0, 1)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		want := sound()
		maps.DeleteFunc(want, func(attribute uint, _ []byte) bool { return tc.fails[attribute] != 0 })
		if diff := cmp.Diff(description(want), told); diff != "" {
			t.Errorf("%s: %s", tc.name, diff)
		}
		if token.requests != tc.requests {
			t.Errorf("%s: %d requests, want %d", tc.name, token.requests, tc.requests)
		}
		if refusal := reader.refusal(told, told.attributes()); (refusal != "") != tc.refused {
			t.Errorf("%s: refused for %q", tc.name, refusal)
		}
	}
}

// A failure that speaks of the token, and a key without CKA_ID, must not look like a key that tells little.
func TestDescribeFails(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		fails map[uint]p11.RV
		want  p11.RV
	}{
		{map[uint]p11.RV{pkcs11.CKA_LOCAL: pkcs11.CKR_DEVICE_ERROR}, pkcs11.CKR_DEVICE_ERROR},
		{map[uint]p11.RV{pkcs11.CKA_ID: pkcs11.CKR_ATTRIBUTE_TYPE_INVALID}, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID},
		{map[uint]p11.RV{pkcs11.CKA_PRIVATE: pkcs11.CKR_ATTRIBUTE_SENSITIVE, pkcs11.CKA_LOCAL: pkcs11.CKR_SESSION_CLOSED}, pkcs11.CKR_SESSION_CLOSED},
	} {
		told, err := (&keyReader{api: &teller{values: sound(), fails: tc.fails}, ring: "ring"}).describe(0, 1)
		if !hasRV(err, tc.want) {
			t.Errorf("%v: told %v, %v", slices.Collect(maps.Keys(tc.fails)), told, err)
		}
	}
}
