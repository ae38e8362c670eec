package hsm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/hsm/guard"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/internal/filelock"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// errVanished: the connection works and every key that was there is not. SoftHSM looks like this when its
// folder was moved; it is believed only of a new worker.
var errVanished = errors.New("all keys have vanished from the token")

// connect makes a generation in w: slot, session, login, keys, self-test; all of it until ctx ends, but for C_Login.
// isNew: nothing was done in w before.
func (t *Token) connect(ctx context.Context, w workerProcess, isNew bool) (*generation, error) {
	api := w.For(ctx, t.cfg.ConnectTimeout)
	if isNew {
		if err := t.initialize(api); err != nil {
			return nil, err
		}
	} else if err := t.closeRetired(api); err != nil {
		t.requireNewWorker()
		return nil, err
	}
	reader, info, in, err := t.openAdmin(ctx, w, api)
	if err != nil {
		return nil, err
	}
	gen, err := t.readGeneration(ctx, reader, info, isNew)
	if err != nil {
		t.leave(api, reader)
		return nil, err
	}
	gen.isNew, gen.loggedIn, gen.worker, gen.api = isNew, in, w, w.For(context.Background(), t.cfg.CallTimeout)
	return gen, nil
}

// initialize makes the module ready. CKR_CRYPTOKI_ALREADY_INITIALIZED is success: nobody else uses the module in this
// worker, so an earlier call has succeeded and reported otherwise.
func (t *Token) initialize(api p11.API) error {
	err := api.Initialize()
	if err != nil && !hasRV(err, pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED) {
		return fmt.Errorf("initialising module %s: %w", t.cfg.Module, err)
	}
	return nil
}

// openAdmin opens the admin session and logs in, under the login lock.
func (t *Token) openAdmin(ctx context.Context, w workerProcess, api p11.API) (*keyReader, pkcs11.TokenInfo, bool, error) {
	unlock, err := t.lockLogin(ctx)
	if err != nil {
		return nil, pkcs11.TokenInfo{}, false, err
	}
	defer unlock()
	slot, info, err := t.findSlot(api)
	if err != nil {
		return nil, info, false, err
	}
	session, err := api.OpenSession(slot, false)
	if err != nil {
		return nil, info, false, fmt.Errorf("opening session: %w", err)
	}
	reader := t.reader(api, slot, session)
	// C_Login has connectTimeout for itself: what became of a PIN must be known before another attempt.
	in, err := t.login(ctx, api, w, w.For(context.Background(), t.cfg.ConnectTimeout), slot, session, info)
	if err != nil {
		t.leave(api, reader)
	}
	if isUnsettled(err) { // programs that have disturbed each other must not do so again at their second looks
		time.Sleep(rand.N(4 * secondLookPause))
	}
	return reader, info, in, err
}

// secondLookPause is before the second look at what isUnsettled.
const secondLookPause = 50 * time.Millisecond

// isUnsettled reports whether an error may come from another program that logs in to the token just now: SoftHSM empties
// the token's file for an instant then, and so there is no token, or one that cannot be used. It is believed
// when a second look agrees, in another worker: SoftHSM reads the tokens at C_Initialize.
func isUnsettled(err error) bool {
	return errors.Is(err, ErrTokenAbsent) || err != nil && !errors.Is(err, guard.ErrPaused) && slices.ContainsFunc(
		[]string{"CKR_GENERAL_ERROR", "CKR_TOKEN_NOT_RECOGNIZED", "CKR_USER_PIN_NOT_INITIALIZED"},
		func(name string) bool { return strings.Contains(err.Error(), name) }) // crypto11 leaves only text
}

// leave closes the sessions of a connection that was not made.
func (t *Token) leave(api p11.API, reader *keyReader) {
	left := reader.leftOpen
	for _, s := range append(reader.beside, reader.session) {
		left = closeSession(api, s) != nil || left
	}
	if left {
		t.requireNewWorker()
	}
}

// lockLogin keeps every other worker and command of this machine from logging in to the module's tokens meanwhile:
// SoftHSM truncates a token's file at each login and writes it afterwards, and a process that looks in between sees no token.
func (t *Token) lockLogin(ctx context.Context) (unlock func(), err error) {
	if t.looksAgain {
		return func() {}, nil
	}
	sum := sha256.Sum256([]byte(t.cfg.Module))
	lock, err := filelock.Wait(ctx, filepath.Join(t.common.StateDir, "login-"+hex.EncodeToString(sum[:8])+".lock"))
	switch {
	case errors.Is(err, filelock.ErrHeld):
		return nil, fmt.Errorf("waiting for another login to module %s: %w", t.cfg.Module, errAbandoned)
	case err != nil:
		return nil, stateError(err)
	}
	return func() { _ = lock.Unlock() }, nil
}

// lookAgain has f look for the token a second time, in a new worker and with the login lock held all the time:
// C_Initialize is where SoftHSM reads its tokens.
func (t *Token) lookAgain(ctx context.Context, f func() error) error {
	time.Sleep(secondLookPause)
	unlock, err := t.lockLogin(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	t.looksAgain = true
	defer func() { t.looksAgain = false }()
	return f()
}

func stateError(err error) error {
	return hint.Wrap(fmt.Errorf("%w: %w", ErrConfiguration, err), "make stateDir a folder that this user can write; a record of PIN attempts that cannot be read is cleared with: hsm-kms doctor --try-pin")
}

func (t *Token) reader(api p11.API, slot uint, session p11.Session) *keyReader {
	return &keyReader{
		api: api, slot: slot, session: session, open: func() (p11.Session, error) { return api.OpenSession(slot, false) },
		ring: t.common.Ring, profile: t.common.Profile, allow: t.common.AllowImportedKeys, nonces: &t.nonces, own: t.own,
	}
}

// readGeneration reads the ring on the session that is logged in, tests the profile with a key of it, and makes a generation of
// the session and the ring. It does HSM operations; it publishes nothing.
func (t *Token) readGeneration(ctx context.Context, reader *keyReader, info pkcs11.TokenInfo, isNew bool) (*generation, error) {
	t.mu.Lock()
	reader.lenient, reader.known = true, t.shown
	t.mu.Unlock()
	reader.room = t.roomToRead()
	read, err := reader.readAndTest(ctx)
	if err != nil {
		return nil, t.explainNoLogin(err)
	}
	if t.cfg.Login == LoginNone && len(read.keys) == 0 && info.Flags&pkcs11.CKF_LOGIN_REQUIRED != 0 {
		return nil, t.requiresLogin(errors.New("it shows no key of the ring"))
	}
	if len(read.byID) == 0 && t.hadKeysBefore() && !isNew {
		return nil, errVanished
	}
	gen := &generation{slot: reader.slot, serial: trim(info.SerialNumber), admin: reader.session, idle: reader.beside}
	gen.table.Store(read)
	gen.madeAt = time.Now()
	return gen, nil
}

// findSlot finds the one slot whose token matches the configuration. Slot numbers change, so a token is
// looked for again each time.
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
		if ranOutOfTime(err) {
			return 0, i, fmt.Errorf("reading token info of slot %d: %w", slot, err)
		}
		if err != nil {
			// It may be another token that is broken; one that was pulled out between the two calls is no news.
			if classOf(err) != classToken && unread == nil {
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
		err := fmt.Errorf("%w: %s; the module %s shows %s", ErrTokenAbsent, t.selector(), t.cfg.Module, orNone(seen))
		return 0, info, hint.Wrap(err, "check that the HSM is reachable and initialised, and that tokens["+t.cfg.Name+"] names it by label, serial or slot")
	}
	err = fmt.Errorf("%w: two tokens match %s: %s", ErrConfiguration, t.selector(), strings.Join(seen, "; "))
	return 0, info, hint.Wrap(err, "name the token by serial instead")
}

func (t *Token) matches(slot uint, i pkcs11.TokenInfo) bool {
	fits := func(want, field string) bool { return want == "" || want == trim(field) }
	return fits(t.cfg.Label, i.Label) && fits(t.cfg.Serial, i.SerialNumber) && (t.cfg.Slot == nil || *t.cfg.Slot == slot) &&
		fits(t.cfg.Manufacturer, i.ManufacturerID) && fits(t.cfg.Model, i.Model)
}

func (t *Token) selector() string {
	var parts []string
	for _, part := range [][2]string{
		{"label", t.cfg.Label}, {"serial", t.cfg.Serial}, {"manufacturer", t.cfg.Manufacturer}, {"model", t.cfg.Model},
	} {
		if part[1] != "" {
			parts = append(parts, fmt.Sprintf("%s %q", part[0], part[1]))
		}
	}
	if t.cfg.Slot != nil {
		parts = append(parts, "the configured slot")
	}
	return strings.Join(parts, " and ")
}

// trim takes the blanks off a fixed field, which some modules end with NUL instead (PKCS#11 v2.40, section 3.2).
func trim(field string) string { return strings.TrimRight(field, " \x00") }

func orNone(seen []string) string {
	if len(seen) == 0 {
		return "no token"
	}
	return strings.Join(seen, "; ")
}
