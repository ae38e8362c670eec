package hsm

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// A key may do what its profile needs and nothing else.
func TestAllowedMechanisms(t *testing.T) {
	t.Parallel()
	for profile, want := range map[envelope.Profile][]uint64{
		envelope.AESGCM:      {pkcs11.CKM_AES_GCM},
		envelope.HMACKDF:     {pkcs11.CKM_SHA256_HMAC},
		envelope.AESGCMHSMIV: {pkcs11.CKM_AES_GCM, pkcs11.CKM_AES_ECB},
	} {
		var got []uint64
		for value := allowedMechanisms(profile).Value; len(value) > 0; value = value[8:] {
			got = append(got, binary.NativeEndian.Uint64(value))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %#x, want %#x", profile, got, want)
		}
	}
}
