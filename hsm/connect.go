package hsm

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/latch"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// errVanished: the connection works and every key that was there is not. SoftHSM looks like this when its
// folder was moved; it is believed only of a freshly initialised module.
var errVanished = errors.New("all keys have vanished from the token")

// connect makes a generation: slot, session, login, keys, self-test. It runs under the module's lock and the
// token's control, on a goroutine that may outlive its caller; nobody but itself has seen the generation.
func (t *Token) connect(ctx context.Context, api p11.API, fresh bool) (*generation, error) {
	if err := t.mod.initialize(api); err != nil {
		return nil, err
	}
	if err := t.closeRetired(api); err != nil {
		t.noteUnclean()
		return nil, err
	}
	slot, info, err := t.findSlot(api)
	if err != nil {
		return nil, err
	}
	session, err := api.OpenSession(slot, false)
	if err != nil {
		return nil, fmt.Errorf("opening session: %w", err)
	}
	reader := t.reader(api, slot, session)
	gen, err := t.furnish(ctx, api, reader, info, fresh)
	if err != nil {
		if closeErr := closeSession(api, reader.session); closeErr != nil || reader.unclean {
			t.noteUnclean()
		}
		return nil, err
	}
	return gen, nil
}

func (t *Token) reader(api p11.API, slot uint, session p11.Session) *keyReader {
	return &keyReader{
		api: api, slot: slot, session: session,
		ring: t.common.Ring, profile: t.common.Profile, allow: t.common.AllowImportedKeys, nonces: &t.nonces,
	}
}

// furnish makes the open session into a generation.
func (t *Token) furnish(ctx context.Context, api p11.API, reader *keyReader, info pkcs11.TokenInfo, fresh bool) (*generation, error) {
	in, err := t.login(ctx, api, reader.slot, reader.session, info)
	if err != nil {
		return nil, err
	}
	keys, err := reader.read(nil)
	if err != nil {
		return nil, err
	}
	if len(keys.byID) == 0 && t.hadKeysBefore() && !fresh {
		return nil, errVanished
	}
	if err := selfTest(ctx, reader, keys); err != nil {
		return nil, err
	}
	gen := &generation{slot: reader.slot, serial: trim(info.SerialNumber), control: reader.session, loggedIn: in}
	gen.table.Store(keys)
	return gen, nil
}

// findSlot finds the one slot whose token matches the configuration. Slot numbers change, so a token is
// looked for anew each time.
func (t *Token) findSlot(api p11.API) (uint, pkcs11.TokenInfo, error) {
	slots, err := api.Slots()
	if err != nil {
		return 0, pkcs11.TokenInfo{}, fmt.Errorf("listing slots: %w", err)
	}
	var found []uint
	var info pkcs11.TokenInfo
	var seen []string
	var unread error
	for _, slot := range slots {
		i, err := api.TokenInfo(slot)
		if err != nil {
			// It may be another token that is broken; one that was pulled out between the two calls is no news.
			if faultOf(err) != faultToken && unread == nil {
				unread = fmt.Errorf("reading token info of slot %d: %w", slot, err)
			}
			continue
		}
		if i.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			continue
		}
		seen = append(seen, fmt.Sprintf("slot %d label %q serial %q", slot, trim(i.Label), trim(i.SerialNumber)))
		if t.matches(slot, i) {
			found, info = append(found, slot), i
		}
	}
	switch {
	case len(found) == 1:
		return found[0], info, nil
	case len(found) == 0 && unread != nil:
		return 0, info, unread
	case len(found) == 0:
		err := fmt.Errorf("%w: %s; the module %s shows %s", ErrTokenAbsent, t.selector(), t.mod.path, orNone(seen))
		return 0, info, hint.Wrap(err, "see that the HSM is reachable and initialised, and that tokens["+t.cfg.Name+"] names it by label, serial or slot")
	}
	err = fmt.Errorf("%w: two tokens match %s: %s", ErrConfiguration, t.selector(), strings.Join(seen, "; "))
	return 0, info, hint.Wrap(err, "name the token by serial instead")
}

func (t *Token) matches(slot uint, i pkcs11.TokenInfo) bool {
	switch {
	case t.cfg.Label != "":
		return trim(i.Label) == t.cfg.Label
	case t.cfg.Serial != "":
		return trim(i.SerialNumber) == t.cfg.Serial
	}
	return t.cfg.Slot != nil && *t.cfg.Slot == slot
}

func (t *Token) selector() string {
	switch {
	case t.cfg.Label != "":
		return fmt.Sprintf("label %q", t.cfg.Label)
	case t.cfg.Serial != "":
		return fmt.Sprintf("serial %q", t.cfg.Serial)
	}
	return "the configured slot"
}

// trim takes the blanks off a fixed field, which some modules end with NUL instead (PKCS#11 v2.40, section 3.2).
func trim(field string) string { return strings.TrimRight(field, " \x00") }

func orNone(seen []string) string {
	if len(seen) == 0 {
		return "no token"
	}
	return strings.Join(seen, "; ")
}

// login logs in unless the application is logged in already: login belongs to all sessions of a token. At most
// one C_Login is made, under the latch.
func (t *Token) login(ctx context.Context, api p11.API, slot uint, s p11.Session, info pkcs11.TokenInfo) (in bool, err error) {
	if in, err := isLoggedIn(api, s); err != nil || in {
		return in, err
	}
	if info.Flags&pkcs11.CKF_LOGIN_REQUIRED == 0 && info.Flags&pkcs11.CKF_USER_PIN_INITIALIZED == 0 {
		return false, nil // a token without a PIN; private keys are then shown to all, and it says so itself
	}
	if err := mayLogin(info); err != nil {
		return false, err
	}
	pin, file, err := pinfile.Read(t.cfg.PINFile)
	if errors.Is(err, pinfile.ErrChanging) {
		return false, err // reading it again cures that
	}
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrConfiguration, err)
	}
	defer pin.Wipe()
	clean := info.Flags&pkcs11.CKF_USER_PIN_COUNT_LOW == 0
	err = t.latch.Attempt(ctx, identity(info), file, clean, func() (latch.Outcome, error) {
		t.warnOfCounter(clean)
		outcome, err := loginOutcome(api.Login(s, pin.Bytes()))
		if outcome == latch.Undecided && counted(api, slot, clean) {
			outcome = latch.Refused
		}
		return outcome, err
	})
	switch {
	case err == nil:
		return true, mustBeLoggedIn(api, s)
	case errors.Is(err, latch.ErrStands), faultOf(err) == faultPIN:
		return false, pinRefused(err)
	case errors.Is(err, latch.ErrState):
		return false, hint.Wrap(fmt.Errorf("%w: %w", ErrConfiguration, err), "make stateDir a folder that this user can write; a latch that cannot be read is cleared with: hsm-kms doctor --try-pin")
	}
	return false, fmt.Errorf("logging in: %w", err)
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

// loginOutcome tells the latch what a C_Login means.
func loginOutcome(err error) (latch.Outcome, error) {
	switch {
	case err == nil, hasRV(err, pkcs11.CKR_USER_ALREADY_LOGGED_IN):
		return latch.Succeeded, nil
	case faultOf(err) == faultPIN:
		return latch.Refused, err
	}
	return latch.Undecided, err
}

// identity names a token for the latch.
func identity(i pkcs11.TokenInfo) string {
	return strings.Join([]string{trim(i.SerialNumber), trim(i.Label), trim(i.ManufacturerID), trim(i.Model)}, "|")
}

// selfTest proves the profile on the control session, with the newest key that passes.
func selfTest(ctx context.Context, reader *keyReader, keys *table) error {
	var failed error
	for _, held := range keys.newest() {
		err := envelope.SelfTest(ctx, &sessionToken{reader: reader, keys: keys}, reader.profile, held.key.ID)
		if err == nil {
			return nil
		}
		failed = errors.Join(failed, fmt.Errorf("trying %s: %w", held.key.ID, err))
		if !errors.Is(err, envelope.ErrSelfTest) {
			break
		}
	}
	return failed
}

// sessionToken is a generation in the making as a token: one session, no retries.
type sessionToken struct {
	envelope.Token // nil: only the methods below are called
	reader         *keyReader
	keys           *table
}

func (s *sessionToken) EncryptGCM(_ context.Context, id envelope.KeyID, nonce *[envelope.NonceSize]byte, associated, plaintext []byte) ([]byte, error) {
	s.reader.nonces.used(id)
	return s.reader.api.EncryptGCM(s.reader.session, s.keys.byID[id].handle, nonce[:], associated, plaintext)
}

// DecryptGCM takes a refusal for the ciphertext's fault: the self-test opens a sound one just before.
func (s *sessionToken) DecryptGCM(_ context.Context, id envelope.KeyID, nonce *[envelope.NonceSize]byte, associated, sealed []byte) ([]byte, error) {
	out, err := s.reader.api.DecryptGCM(s.reader.session, s.keys.byID[id].handle, nonce[:], associated, sealed)
	if err != nil && faultOf(err) == faultData {
		if err := s.reader.replace(); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", envelope.ErrUnauthentic, err)
	}
	return out, err
}

func (s *sessionToken) MAC(_ context.Context, id envelope.KeyID, data []byte) (mac [envelope.MACSize]byte, err error) {
	out, err := s.reader.api.HMAC(s.reader.session, s.keys.byID[id].handle, data)
	if err != nil {
		return mac, err
	}
	defer clear(out)
	if len(out) != len(mac) {
		return mac, fmt.Errorf("%w: an HMAC of %d bytes", envelope.ErrSelfTest, len(out))
	}
	return [envelope.MACSize]byte(out), nil
}
