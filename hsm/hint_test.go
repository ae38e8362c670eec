package hsm

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// Whatever keeps a token from being used, the log says what to do about it, in an imperative that fits the cause.
func TestHintFor(t *testing.T) {
	t.Parallel()
	call := func(function string, rv p11.RV) error {
		return fmt.Errorf("doing: %w", &p11.Error{Function: function, RV: rv})
	}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{call("C_Initialize", pkcs11.CKR_GENERAL_ERROR), "the module does not start"},
		{call("C_OpenSession", pkcs11.CKR_DEVICE_ERROR), "client service"},
		{call("C_OpenSession", pkcs11.CKR_SESSION_COUNT), "maxSessions"},
		{call("C_Login", pkcs11.CKR_USER_PIN_NOT_INITIALIZED), "set the token's user PIN"},
		{call("C_Login", pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN), "another user"},
		{call("C_OpenSession", 0x80000042), "client service"}, // a vendor's own
		{fmt.Errorf("connecting: %w", errAbandoned), "does not answer"},
		{errVanished, "backup"},
		{fmt.Errorf("%w: x", envelope.ErrSelfTest), "docs/hsm-support.md"},
		{fmt.Errorf("%w: x", envelope.ErrPINRefused), "PIN file"},
		{fmt.Errorf("%w: x", ErrConfiguration), "configuration"},
		{fmt.Errorf("%w: x", ErrTokenAbsent), "tokens[]"},
		{errors.New("connecting panicked"), "hsm-kms doctor"},
		{hint.Wrap(call("C_Initialize", pkcs11.CKR_GENERAL_ERROR), "what the place says"), "what the place says"},
	} {
		if got := HintFor(tt.err); !strings.Contains(got, tt.want) {
			t.Errorf("%v: %q, want something with %q", tt.err, got, tt.want)
		}
	}
}
