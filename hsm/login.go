package hsm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

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
	if t.cfg.Login == LoginNone {
		return false, nil
	}
	if in, err := isLoggedIn(api, s); err != nil || in {
		return in, err
	}
	if info.Flags&pkcs11.CKF_LOGIN_REQUIRED == 0 && info.Flags&pkcs11.CKF_USER_PIN_INITIALIZED == 0 {
		return false, nil // a token without a PIN; private keys are then shown to all, and it says so itself
	}
	var refused error
	err = t.tryPIN(ctx, api, w, slot, info, func(file pinfile.Identity) error {
		refused = patient.Login(s, file)
		return refused
	})
	if err != nil {
		return false, err
	}
	return mustBeLoggedIn(api, s, info, refused)
}

// tryPIN calls login at most once, under the attempt guard. Everything that logs in comes through here.
func (t *Token) tryPIN(ctx context.Context, api p11.API, w workerProcess, slot uint, info pkcs11.TokenInfo, login func(pinfile.Identity) error) error {
	if err := mayLogin(info); err != nil {
		return err
	}
	file, err := t.pinSource(info)
	if err != nil {
		return err
	}
	pin := t.pin(ctx, w, file)
	token := t.guarded(info)
	outcome := guard.NotTried
	err = t.guard.Attempt(ctx, token, pin.tag, func() (guard.Outcome, error) {
		t.warnOfCounter(token.Clean)
		err := login(file)
		outcome = outcomeOf(err)
		t.noteLogin(outcome)
		if outcome == guard.Succeeded {
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

func (t *Token) noteLogin(outcome guard.Outcome) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch outcome {
	case guard.Unseen:
		t.swap.unseen = time.Now()
	case guard.Succeeded:
		t.swap.unseen = time.Time{}
	default:
	}
}

// pinSource is where the PIN comes from: a state of the PIN file, or the token's PIN pad.
func (t *Token) pinSource(info pkcs11.TokenInfo) (pinfile.Identity, error) {
	if t.cfg.Login == LoginPINPad {
		if info.Flags&pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH == 0 {
			err := fmt.Errorf("%w: login is pinpad, and the token has none (CKF_PROTECTED_AUTHENTICATION_PATH is clear)", ErrConfiguration)
			return pinfile.Identity{}, hint.Wrap(err, "set login: pin and pinFile for tokens["+t.cfg.Name+"], or connect the token's PIN pad")
		}
		return pinfile.Identity{}, nil
	}
	file, err := pinfile.Stat(t.cfg.PINFile, t.cfg.PINRules)
	if err != nil {
		return file, fmt.Errorf("%w: %w", ErrConfiguration, err)
	}
	return file, nil
}

// explainNoLogin says of an error, on a token that is not logged in to, that this may be why.
func (t *Token) explainNoLogin(err error) error {
	if err == nil || t.cfg.Login != LoginNone || !strings.Contains(err.Error(), "CKR_USER_NOT_LOGGED_IN") { // crypto11 leaves only text
		return err
	}
	return t.requiresLogin(err)
}

func (t *Token) requiresLogin(err error) error {
	return hint.Wrap(fmt.Errorf("%w: login is none, and the token requires a login: %w", ErrConfiguration, err),
		"set login: pin and pinFile for tokens["+t.cfg.Name+"]")
}

// pinLook is what is known of the PIN in a file, once tag has been called.
type pinLook struct {
	pinfile.Look
	path string
	at   func(key []byte) (pinfile.Look, error)
}

func (t *Token) pin(ctx context.Context, w workerProcess, file pinfile.Identity) *pinLook {
	if file.IsPINPad() {
		return &pinLook{at: func([]byte) (pinfile.Look, error) { return pinfile.PINPad(), nil }}
	}
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
		Prompts:     t.cfg.Login == LoginPINPad,
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
	case pinfile.IsError(err):
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
		return hint.Wrap(fmt.Errorf("%w: %w", envelope.ErrPINRefused, err), t.refusedHint())
	case outcome == guard.Locked, errors.Is(err, guard.ErrLocked):
		return hint.Wrap(fmt.Errorf("%w: %w", envelope.ErrPINLocked, err), envelope.PINLockedHint)
	case outcome == guard.Expired, errors.Is(err, guard.ErrExpired):
		return hint.Wrap(fmt.Errorf("%w: %w", envelope.ErrPINExpired, err), envelope.PINExpiredHint)
	case errors.Is(err, guard.ErrPaused) && t.loginFailed != nil:
		return fmt.Errorf("logging in: %w: %w", err, t.loginFailed)
	case pinfile.IsError(err) && !errors.Is(err, pinfile.ErrChanging): // reading it again cures that one
		return fmt.Errorf("%w: %w", ErrConfiguration, err)
	}
	return fmt.Errorf("logging in: %w", err)
}

func (t *Token) refusedHint() string {
	if t.cfg.Login == LoginPINPad {
		return "the token is not asked for its PIN again by itself: be at its PIN pad, and run hsm-kms doctor --try-pin"
	}
	return envelope.PINRefusedHint
}

// mustBeLoggedIn does not take C_Login's word for it: a session that is not logged in sees a ring without keys. Where no
// login is required it sees them: NSS softokn takes an empty PIN and logs nobody in. refused is what C_Login returned: nil, or that
// somebody is logged in.
func mustBeLoggedIn(api p11.API, s p11.Session, info pkcs11.TokenInfo, refused error) (in bool, err error) {
	in, err = isLoggedIn(api, s)
	switch {
	case err != nil || in || info.Flags&pkcs11.CKF_LOGIN_REQUIRED == 0:
		return in, err
	case refused != nil:
		return false, fmt.Errorf("logging in: the session is not logged in, and the token refuses it: %w", refused)
	}
	return false, errors.New("logging in: the token reports success, and the session is not logged in")
}

func isLoggedIn(api p11.API, s p11.Session) (bool, error) {
	state, err := api.SessionInfo(s)
	if err != nil {
		return false, fmt.Errorf("reading session info: %w", err)
	}
	return state.State == pkcs11.CKS_RO_USER_FUNCTIONS || state.State == pkcs11.CKS_RW_USER_FUNCTIONS, nil
}
