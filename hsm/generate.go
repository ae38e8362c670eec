package hsm

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/ThalesIgnite/crypto11"
	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/latch"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// Creation is what became of a key that was to be made.
type Creation struct {
	Outcome Outcome
	// Key is the key as the token shows it: served, or refused and why. Unless it was made it has its CKA_ID and its
	// activation alone.
	Key envelope.Key
	// Hangs: a call into the module has not returned. The module must not be used again in this process.
	Hangs bool
}

// Generate makes a key of the ring on the token, with the CKA_ID ckaID, after the profile was proven on the token. The
// error is nil if and only if the key was made. It returns by ctx, and some callTimeouts later at the latest, whatever
// the module does. The module must not be in use before: crypto11, which makes the key, initialises and finalises it.
func Generate(ctx context.Context, common Config, cfg TokenConfig, ckaID []byte) (Creation, error) {
	made := Creation{Outcome: NotMade, Key: envelope.Key{CKAID: ckaID}}
	made.Key.Activation, _ = envelope.ActivationOf(ckaID)
	set, err := Open(common, []TokenConfig{cfg})
	if err != nil {
		return made, err
	}
	m := &maker{t: set.tokens[0], ckaID: ckaID}
	err = m.t.onControl(ctx, "making a key", func() {}, func(api p11.API, c *call) error {
		m.api = api
		return m.run(ctx, c)
	})
	if m.right.abandon() {
		made, err = m.settle(made, err)
	}
	if m.t.mod.flight.idle() { // C_Finalize under a call crashes modules
		m.close()
	}
	made.Hangs = !m.t.mod.flight.idle()
	return made, err
}

// maker makes one key. Its fields belong to the sequence until that has ended; before is set before the right is used.
type maker struct {
	t      *Token
	ckaID  []byte
	right  claim
	api    p11.API
	open   *crypto11.Context
	gen    *generation
	before *sight
	shared bool // crypto11's login is ours too
}

// crypto11Calls bounds a call of crypto11, which makes several to the module, in callTimeouts.
const crypto11Calls = 5

// run is the sequence: crypto11 logs in and makes keys, and all that is looked at is looked at with our own calls.
func (m *maker) run(ctx context.Context, c *call) error {
	slot, info, err := m.t.lookUp(m.api)
	if err != nil {
		return err
	}
	if err := mayLogin(info); err != nil {
		return err
	}
	if err := m.configure(ctx, c, slot, info); err != nil {
		return err
	}
	if err := m.connect(ctx, slot, info); err != nil {
		return err
	}
	from, err := m.prove(c)
	if err != nil {
		return err
	}
	if m.shared { // otherwise our login would end with it
		m.gen.mu.Lock()
		m.gen.idle = append(m.gen.idle, m.gen.control) // the look takes its place: with crypto11's two, three sessions at once
		m.gen.mu.Unlock()
	}
	_, err = m.generate(c, m.t.common.Profile, true, from, m.right.do)
	return err
}

// lookUp finds the slot, with the module initialised for just as long.
func (t *Token) lookUp(api p11.API) (slot uint, info pkcs11.TokenInfo, err error) {
	if err := t.mod.initialize(api); err != nil {
		return 0, info, err
	}
	slot, info, err = t.findSlot(api)
	if endErr := api.Finalize(); endErr != nil && err == nil {
		err = fmt.Errorf("finalising module %s: %w", t.mod.path, endErr)
	}
	t.mod.initialized = false
	return slot, info, err
}

// configure logs in through crypto11, under the latch.
func (m *maker) configure(ctx context.Context, c *call, slot uint, info pkcs11.TokenInfo) error {
	t := m.t
	pin, file, err := pinfile.Read(t.cfg.PINFile)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrConfiguration, err)
	}
	defer pin.Wipe()
	clean := info.Flags&pkcs11.CKF_USER_PIN_COUNT_LOW == 0
	err = t.latch.Attempt(ctx, identity(info), file, clean, func() (latch.Outcome, error) {
		t.warnOfCounter(clean)
		t.mod.flight.grant(c, "making a key, logging in", crypto11Calls*t.cfg.CallTimeout)
		number := int(slot)
		// crypto11 takes the PIN as a string, which nobody can wipe; this process ends soon.
		m.open, err = crypto11.Configure(&crypto11.Config{
			Path: t.cfg.Module, SlotNumber: &number, Pin: string(pin.Bytes()), MaxSessions: 2,
		})
		return configureOutcome(err)
	})
	if err != nil {
		return refusedOr(err, "opening the token for key generation")
	}
	return nil
}

// connect takes part in crypto11's connection: login and session keys belong to all sessions of a process. p11-kit's
// client gives crypto11 and us a connection each; ours then has a login of its own, and sees no session keys.
func (m *maker) connect(ctx context.Context, slot uint, info pkcs11.TokenInfo) error {
	if err := m.t.mod.initialize(m.api); err != nil {
		return err
	}
	s, err := m.api.OpenSession(slot, false)
	if err != nil {
		return fmt.Errorf("opening session: %w", err)
	}
	m.gen = &generation{slot: slot, control: s}
	if m.shared, err = isLoggedIn(m.api, s); err != nil {
		return err
	}
	if m.gen.loggedIn, err = m.t.login(ctx, m.api, slot, s, info); err != nil {
		return err
	}
	m.t.change(func() { m.t.gen = m.gen }) // for the look afterwards
	reader := m.t.reader(m.api, slot, s)
	m.before, err = m.t.see(reader, m.gen)
	m.gen.control = reader.session
	return err
}

// generate makes a key with every attribute that the token accepts, of the optional ones from that index on: those are
// left out step by step. One that stays is a version of the ring. It returns the index of what was accepted.
func (m *maker) generate(c *call, profile envelope.Profile, stays bool, from int, do func(func() error) error) (int, error) {
	cipher := crypto11.CipherAES
	if profile == envelope.HMACKDF {
		cipher = crypto11.CipherGeneric
	}
	label := trialLabel
	if stays {
		label = m.t.common.Ring
	}
	choices := optional(profile)
	for i := from; ; i++ {
		template := crypto11.NewAttributeSet()
		template.AddIfNotPresent(append(required(profile, label, m.ckaID, stays), choices[i]...))
		m.t.mod.flight.grant(c, "making a key, in C_GenerateKey", crypto11Calls*m.t.cfg.CallTimeout)
		err := do(func() error {
			_, err := m.open.GenerateSecretKeyWithAttributes(template, 256, cipher)
			return err
		})
		if err == nil {
			return i, nil
		}
		if !refusesTemplate(err) || i == len(choices)-1 {
			return i, fmt.Errorf("generating a key: %w", err)
		}
	}
}

// settle finds out what became of the key when its making had begun.
func (m *maker) settle(made Creation, err error) (Creation, error) {
	is, lookErr := m.t.settle(&m.right, func(ctx context.Context) (bool, error) {
		now, err := m.t.look(ctx)
		if err != nil {
			return false, err
		}
		if key := now.find(m.ckaID); key != nil {
			made.Key = *key
			return true, nil
		}
		return false, now.continues(m.before, string(m.ckaID))
	})
	switch {
	case lookErr != nil:
		made.Outcome = Unknown
		return made, errors.Join(err, lookErr)
	case is:
		made.Outcome = Made
		return made, nil
	case err == nil:
		err = errors.New("the token reports that it made the key, and does not hold it")
	}
	return made, err
}

// close ends what the sequence began; what it cannot end ends with the process.
func (m *maker) close() {
	_ = m.t.sequence(context.Background(), "closing the token after key generation", func() {}, func(api p11.API, c *call) error {
		m.t.mod.flight.grant(c, "closing the token after key generation", crypto11Calls*m.t.cfg.CallTimeout)
		var err error
		if m.open != nil {
			err = m.open.Close()
		}
		if m.t.mod.initialized {
			_ = api.Finalize() // a second time, but for p11-kit's client
		}
		return err
	})
}

// refusedOr gives a refused PIN the error and the hint that it has everywhere.
func refusedOr(err error, what string) error {
	if errors.Is(err, latch.ErrStands) || mentionsPIN(err) {
		return pinRefused(err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func pinRefused(err error) error {
	return hint.Wrap(fmt.Errorf("%w: %w", envelope.ErrPINRefused, err),
		"correct the PIN file: no further attempt is made until it changes, because tokens lock for good; under systemd's LoadCredential=, or when the PIN was right, allow one more with: hsm-kms doctor --try-pin")
}

// configureOutcome tells the latch what a crypto11.Configure means. crypto11 wraps with %v, so that no
// pkcs11.Error is left in the chain: its text is all there is.
func configureOutcome(err error) (latch.Outcome, error) {
	switch {
	case err == nil:
		return latch.Succeeded, nil
	case mentionsPIN(err):
		return latch.Refused, err
	}
	return latch.Undecided, err
}

func mentionsPIN(err error) bool { return strings.Contains(err.Error(), "CKR_PIN_") }
