package hsmtest_test

import (
	"testing"

	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/hsm/hsmtest"
	"github.com/hsm-kms/hsm-kms/test/tokens"
)

// TestInspect: what a real token tells without a login is enough to say that it fits, and it says so of its own profile.
func TestInspect(t *testing.T) {
	for _, c := range []struct {
		name  string
		token func(*testing.T) hsmtest.Subject
	}{
		{"SoftHSM with GCM", func(t *testing.T) hsmtest.Subject { _, s := softHSM(t, "aes-gcm"); return s }},
		{"SoftHSM with HMAC", func(t *testing.T) hsmtest.Subject { _, s := softHSM(t, "hmac-kdf"); return s }},
		{"opencryptoki", func(t *testing.T) hsmtest.Subject { return subject(t, tokens.Opencryptoki(t)) }},
		{"NSS", func(t *testing.T) hsmtest.Subject { return subject(t, tokens.NSS(t)) }},
		{"TPM", func(t *testing.T) hsmtest.Subject { return subject(t, tokens.TPM(t)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			if tokens.Apart(t) {
				return
			}
			s := c.token(t)
			found := hsm.Inspect(t.Context(), s.Common, []hsm.TokenConfig{s.Token})
			if len(found) != 1 || found[0].Err != nil || found[0].Hangs {
				t.Fatalf("%+v", found)
			}
			seen := found[0]
			if seen.Label != s.Token.Label || len(seen.Lacks) != 0 || seen.Guard != nil || seen.PIN != (hsm.PINState{}) {
				t.Errorf("%+v", seen)
			}
			if seen.CannotMake != (c.name == "TPM") {
				t.Errorf("cannot make keys: %t", seen.CannotMake)
			}
		})
	}
}
