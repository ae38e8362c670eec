package hsm

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/guard"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// login logs in unless the application is logged in already: login belongs to all sessions of a token. At most
// one C_Login is made, under the attempt guard, through patient.
func (t *Token) login(ctx context.Context, api p11.API, w workerProcess, patient p11.API, slot uint, s p11.Session, info pkcs11.TokenInfo) (in bool, err error) {
	if in, err := isLoggedIn(api, s); err != nil || in {
		return in, err
	}
	if info.Flags&pkcs11.CKF_LOGIN_REQUIRED == 0 && info.Flags&pkcs11.CKF_USER_PIN_INITIALIZED == 0 {
		return false, nil // a token without a PIN; private keys are then shown to all, and it says so itself
	}
	err = t.tryPIN(ctx, api, w, slot, info, func(file pinfile.Identity) error { return patient.Login(s, file) })
	if err != nil {
		return false, err
	}
	return true, mustBeLoggedIn(api, s)
}

// tryPIN calls login at most once, under the attempt guard. Everything that logs in comes through here.
func (t *Token) tryPIN(ctx context.Context, api p11.API, w workerProcess, slot uint, info pkcs11.TokenInfo, login func(pinfile.Identity) error) error {
	if err := mayLogin(info); err != nil {
		return err
	}
	file, err := pinfile.Stat(t.cfg.PINFile, t.cfg.AllowGroupPIN)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrConfiguration, err)
	}
	pin := t.pin(ctx, w, file)
	token := t.guarded(info)
	outcome := guard.NotTried
	err = t.guard.Attempt(ctx, token, pin.tag, func() (guard.Outcome, error) {
		t.warnOfCounter(token.Clean)
		err := login(file)
		if outcome = outcomeOf(err); outcome == guard.Succeeded {
			return outcome, nil
		}
		if outcome == guard.Undecided && counted(api, slot, token.Clean) {
			outcome = guard.Refused
		}
		t.loginFailed = err
		return outcome, err
	})
	return t.explainLogin(err, outcome, pin)
}

// pinLook is what is known of the PIN in a file, once tag has been called.
type pinLook struct {
	pinfile.Look
	path string
	at   func(key []byte) (pinfile.Look, error)
}

func (t *Token) pin(ctx context.Context, w workerProcess, file pinfile.Identity) *pinLook {
	return &pinLook{path: file.Path, at: func(key []byte) (pinfile.Look, error) {
		return w.For(ctx, t.cfg.CallTimeout).LookAtPIN(file, key)
	}}
}

// tag is guard.TagOf.
func (p *pinLook) tag(key []byte) (tag uint32, err error) {
	p.Look, err = p.at(key)
	return p.Tag, err
}

// guarded is the token as the attempt guard knows it: two rings on one token share its record, and two copies of a token,
// which may have one serial and one label, have modules of their own.
func (t *Token) guarded(info pkcs11.TokenInfo) guard.Token {
	identity := strings.Join([]string{trim(info.SerialNumber), trim(info.Label), trim(info.ManufacturerID), trim(info.Model)}, "|")
	return guard.Token{
		Name:        fmt.Sprintf("%q in %q", identity, t.cfg.Module),
		Clean:       info.Flags&pkcs11.CKF_USER_PIN_COUNT_LOW == 0,
		ToBeChanged: info.Flags&pkcs11.CKF_USER_PIN_TO_BE_CHANGED != 0,
	}
}

// outcomeOf is what an error of a login means for the PIN. It goes by the text, which is all that crypto11 leaves of the
// return value.
func outcomeOf(err error) guard.Outcome {
	says := func(name string) bool { return strings.Contains(err.Error(), name) }
	switch {
	case err == nil, hasRV(err, pkcs11.CKR_USER_ALREADY_LOGGED_IN):
		return guard.Succeeded
	case errors.Is(err, p11.ErrEnded), errors.Is(err, p11.ErrOverdue):
		return guard.Unseen
	case isPINFile(err):
		return guard.NotTried
	case says("CKR_PIN_LOCKED"):
		return guard.Locked
	case says("CKR_PIN_EXPIRED"):
		return guard.Expired
	case says("CKR_PIN_"):
		return guard.Refused
	}
	return guard.Undecided
}

// explainLogin gives a login that failed, or that was not tried, the error and the hint that it has everywhere.
func (t *Token) explainLogin(err error, outcome guard.Outcome, pin *pinLook) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, guard.ErrState):
		return stateError(err)
	case outcome == guard.Refused, errors.Is(err, guard.ErrStands):
		if pin.Blank {
			err = fmt.Errorf("%w; the PIN in %s begins or ends with a blank", err, pin.path)
		}
		return hint.Wrap(fmt.Errorf("%w: %w", envelope.ErrPINRefused, err),
			"correct the PIN file: the same PIN is not tried again, because tokens lock for good; if it is right, allow one more attempt with: hsm-kms doctor --try-pin")
	case outcome == guard.Locked, errors.Is(err, guard.ErrLocked):
		return hint.Wrap(fmt.Errorf("%w: %w", envelope.ErrPINLocked, err), lockedHint)
	case outcome == guard.Expired, errors.Is(err, guard.ErrExpired):
		return hint.Wrap(fmt.Errorf("%w: %w", envelope.ErrPINExpired, err), expiredHint)
	case errors.Is(err, guard.ErrPaused) && t.loginFailed != nil:
		return fmt.Errorf("logging in: %w: %w", err, t.loginFailed)
	case isPINFile(err) && !errors.Is(err, pinfile.ErrChanging): // reading it again cures that one
		return fmt.Errorf("%w: %w", ErrConfiguration, err)
	}
	return fmt.Errorf("logging in: %w", err)
}

const (
	lockedHint = "a TPM in dictionary-attack lock-out recovers by itself (see it with tpm2_getcap properties-variable), or with tpm2_dictionarylockout -c; " +
		"any other token: find out who tried wrong PINs, and let the security officer unlock it. The plugin looks again, at least every 10 minutes"
	expiredHint = "set a new PIN with the vendor's tool and write it to the PIN file: a changed PIN is tried at once, without a restart"
)

// isPINFile reports whether an error speaks of the PIN file.
func isPINFile(err error) bool {
	for _, known := range []error{pinfile.ErrAbsent, pinfile.ErrUnreadable, pinfile.ErrUnsafe, pinfile.ErrMalformed, pinfile.ErrChanging} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// mustBeLoggedIn does not take C_Login's word for it: a session that is not logged in sees a ring without keys.
func mustBeLoggedIn(api p11.API, s p11.Session) error {
	in, err := isLoggedIn(api, s)
	if err == nil && !in {
		err = errors.New("logging in: the token reports success, and the session is not logged in")
	}
	return err
}

func isLoggedIn(api p11.API, s p11.Session) (bool, error) {
	state, err := api.SessionInfo(s)
	if err != nil {
		return false, fmt.Errorf("reading session info: %w", err)
	}
	return state.State == pkcs11.CKS_RO_USER_FUNCTIONS || state.State == pkcs11.CKS_RW_USER_FUNCTIONS, nil
}
