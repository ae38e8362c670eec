package hsm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/hsm/worker"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// Creation is what became of a key that was to be made.
type Creation struct {
	Outcome Outcome
	// Key is the key as the token shows it: served, or refused and why. Unless it was made it has its CKA_ID and its
	// activation alone.
	Key envelope.Key
	// Hangs: a call into the module has not returned. Its worker ends with this process at the latest.
	Hangs bool
}

// Generate makes a key of the ring on the token, with the CKA_ID ckaID, after the profile was proven on the token. The
// error is nil if and only if the key was made. It returns by ctx, and some callTimeouts later at the latest, whatever
// the module does. It works in a worker of its own: see worker.Secret.
func Generate(ctx context.Context, common Config, cfg TokenConfig, ckaID []byte) (Creation, error) {
	made := Creation{Outcome: NotMade, Key: envelope.Key{CKAID: ckaID}}
	made.Key.Activation, _ = envelope.ActivationOf(ckaID)
	m := &maker{t: Open(common, []TokenConfig{cfg}).tokens[0], ckaID: ckaID, end: func() {}}
	err := m.run(ctx)
	if m.right.abandon() {
		made, err = m.settle(made, err)
	}
	made.Hangs = m.hangs()
	m.close()
	return made, err
}

// maker makes one key.
type maker struct {
	t      *Token
	ckaID  []byte
	right  claim
	worker workerProcess
	api    p11.API
	gen    *generation
	before *ringView
	shared bool   // crypto11's login is ours too
	end    func() // ends the workers
}

// crypto11Calls bounds a call of crypto11, which makes several to the module, in callTimeouts.
const crypto11Calls = 5

// run is the sequence: crypto11 logs in and makes keys, and all that is looked at is looked at with our own calls.
func (m *maker) run(ctx context.Context) (err error) {
	slot, info, err := m.open(ctx)
	if isUnsettled(err) {
		m.close()
		err = m.t.lookAgain(ctx, func() error {
			slot, info, err = m.open(ctx)
			return err
		})
	}
	if err != nil {
		return err
	}
	if err := m.connect(ctx, slot, info); err != nil {
		return err
	}
	from, err := m.prove(ctx)
	if err != nil {
		return err
	}
	m.lendAdmin()
	_, err = m.generate(ctx, m.t.common.Profile, true, from, m.right.do)
	return err
}

// lendAdmin lets the look afterwards take the place of our session: with crypto11's two, three are open at once. Where the
// login is ours alone it would end with that session.
func (m *maker) lendAdmin() {
	if m.shared {
		m.gen.mu.Lock()
		m.gen.idle = append(m.gen.idle, m.gen.admin)
		m.gen.mu.Unlock()
	}
}

// again connects through another worker, which shows what this one may not: see settle.
func (m *maker) again(ctx context.Context) error {
	m.worker.End()
	slot, info, err := m.open(ctx)
	if err != nil {
		return err
	}
	if err := m.connect(ctx, slot, info); err != nil {
		return err
	}
	m.lendAdmin()
	return nil
}

// open starts a worker and logs in.
func (m *maker) open(ctx context.Context) (slot uint, info pkcs11.TokenInfo, err error) {
	started, err := m.t.startWorker(ctx)
	if err != nil {
		return 0, info, err
	}
	m.worker, m.end = started, started.End
	m.api = m.worker.For(ctx, m.t.cfg.CallTimeout)
	if err := m.t.initialize(m.worker.For(ctx, m.t.cfg.ConnectTimeout)); err != nil {
		return 0, info, err
	}
	return m.logIn(ctx)
}

// logIn finds the token and logs in through crypto11, under the login lock.
func (m *maker) logIn(ctx context.Context) (uint, pkcs11.TokenInfo, error) {
	unlock, err := m.t.lockLogin(ctx)
	if err != nil {
		return 0, pkcs11.TokenInfo{}, err
	}
	defer unlock()
	slot, info, err := m.t.findSlot(m.api)
	if err != nil {
		return 0, info, err
	}
	patient := m.worker.For(ctx, max(m.t.cfg.ConnectTimeout, crypto11Calls*m.t.cfg.CallTimeout))
	if m.t.cfg.Login == LoginNone {
		return slot, info, hintForMaker(patient.OpenMaker(slot, nil))
	}
	err = m.t.tryPIN(ctx, m.api, m.worker, slot, info, func(file pinfile.Identity) error { return hintForMaker(patient.OpenMaker(slot, &file)) })
	return slot, info, err
}

// hintForMaker says what to do where crypto11 cannot use a module that we can use: it hands no pReserved to C_Initialize, and
// does not call C_GetSlotInfo. Its errors are told from those of our own calls by what they lack: see worker.OpenMaker.
func hintForMaker(err error) error {
	_, ours := errors.AsType[*p11.Error](err)
	_, overdue := errors.AsType[*p11.Overdue](err)
	if err == nil || ours || overdue || errors.Is(err, p11.ErrEnded) {
		return err
	}
	return hint.Wrap(fmt.Errorf("opening the module to make keys: %w", err),
		"if hsm-kms doctor reaches the token, the module requires what keys create and keys rotate cannot give it (initArgs, or C_GetSlotInfo first): make the key with the vendor's tool, with the label and the CKA_ID that this prints: hsm-kms keys rotate --print-id (for the first key of a ring, add: --activate-in 0s)")
}

// connect takes part in crypto11's connection: login and session keys belong to all sessions of a process. p11-kit's
// client gives crypto11 and us a connection each; ours then has a login of its own, and sees no session keys.
func (m *maker) connect(ctx context.Context, slot uint, info pkcs11.TokenInfo) error {
	if err := m.t.initialize(m.worker.For(ctx, m.t.cfg.ConnectTimeout)); err != nil {
		return err
	}
	s, err := m.api.OpenSession(slot, false)
	if err != nil {
		return fmt.Errorf("opening session: %w", err)
	}
	m.gen = &generation{
		worker: m.worker, api: m.worker.For(context.Background(), m.t.cfg.CallTimeout), slot: slot, admin: s,
	}
	if m.shared, err = isLoggedIn(m.api, s); err != nil {
		return err
	}
	if m.gen.loggedIn, err = m.t.login(ctx, m.api, m.worker, m.api, slot, s, info); err != nil {
		return err
	}
	reader := m.t.reader(m.api, slot, s)
	m.before, err = m.t.viewOn(reader, m.gen)
	m.gen.admin = reader.session
	if err != nil {
		return err
	}
	m.gen.table.Store(m.before.table)
	m.t.worker = m.worker
	m.t.change(func() { m.t.gen = m.gen }) // for the look afterwards
	m.t.noteView()                         // or another worker would be connected at once, to compare views
	return nil
}

// generate makes a key with every attribute that the token accepts, of the optional ones from that index on: those are
// left out step by step. One that stays is a version of the ring. It returns the index of what was accepted.
func (m *maker) generate(ctx context.Context, profile envelope.Profile, stays bool, from int, do func(func() error) error) (int, error) {
	label := trialLabel
	if stays {
		label = m.t.common.Ring
	}
	choices := optional(profile)
	for i := from; ; i++ {
		secret := worker.Secret{Generic: profile == envelope.HMACKDF}
		for _, attribute := range append(required(profile, label, m.ckaID, stays), choices[i]...) {
			secret.Attributes = append(secret.Attributes, *attribute)
		}
		err := do(func() error { return m.worker.For(ctx, crypto11Calls*m.t.cfg.CallTimeout).Make(secret) })
		if err == nil {
			return i, nil
		}
		if !refusesTemplate(err) || i == len(choices)-1 {
			return i, m.t.explainNoLogin(fmt.Errorf("generating a key: %w", err))
		}
		if !stays {
			continue
		}
		// A token may have made what it refuses: another one would be a second key with the same CKA_ID.
		if lookErr := m.again(ctx); lookErr != nil || m.before.find(m.ckaID) != nil {
			return i, errors.Join(fmt.Errorf("generating a key: %w", err), lookErr)
		}
	}
}

// settle finds out what became of the key when its making had begun.
func (m *maker) settle(made Creation, err error) (Creation, error) {
	m.supervise()
	is, lookErr := m.t.settle(&m.right, m.worker, func(ctx context.Context) (bool, error) {
		now, err := m.t.viewRing(ctx)
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

// supervise has the token connected again where the worker is lost, until end is called.
func (m *maker) supervise() {
	ctx, cancel := context.WithCancel(context.Background())
	running := make(chan struct{})
	go func() {
		defer close(running)
		m.t.run(ctx)
	}()
	m.end = func() {
		cancel()
		<-running
		m.worker.End()
	}
}

// close ends the workers. One in which a call hangs that must not be interrupted is left to end when this process does.
func (m *maker) close() {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.end()
	}()
	if m.hangs() {
		return
	}
	select {
	case <-ended:
	case <-time.After(settleCalls * m.t.cfg.CallTimeout):
	}
}

// hangs reports whether a call has not returned.
func (m *maker) hangs() bool {
	if m.worker == nil {
		return false
	}
	n, _ := m.worker.Hanging(0)
	return n > 0
}
