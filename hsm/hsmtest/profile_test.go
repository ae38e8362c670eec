package hsmtest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/test/tokens"
)

// opencryptoki's soft token has no AES-GCM: that is found before a key is made, and the profile that works is named.
func TestOpencryptokiNamesItsProfile(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	s := subject(t, tokens.Opencryptoki(t))
	s.Common.Profile = envelope.AESGCM
	id, err := envelope.NewCKAID(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	made, err := hsm.Generate(t.Context(), s.Common, s.Token, id)
	if made.Outcome != hsm.NotMade || err == nil || !strings.Contains(err.Error(), "the token cannot serve the profile aes-gcm: ") {
		t.Errorf("%+v, %v", made, err)
	}
	t.Log(err)
	if got := hint.Of(err); got != "set profile: hmac-kdf in the configuration: it works on this token" {
		t.Errorf("hint: %s", got)
	}
	s.Common.Profile = envelope.HMACKDF
	if made, err := hsm.Generate(t.Context(), s.Common, s.Token, id); made.Outcome != hsm.Made || err != nil || made.Key.Refused != "" {
		t.Errorf("with the other profile: %+v, %v", made, err)
	}
}
