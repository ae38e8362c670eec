package hsm

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/internal/growmap"
)

// maxRingKeys bounds the objects of one label that are looked at.
const maxRingKeys = 4096

// keyReader reads the ring: on one session, and on more at once where it has them. A session on which something failed is
// replaced, because a failed operation may leave it unusable.
type keyReader struct {
	api     p11.API
	slot    uint
	session p11.Session
	beside  []p11.Session               // more of them; the caller's when the reading has ended
	room    int                         // how many more may be opened
	open    func() (p11.Session, error) // opens one of these
	ring    string
	profile envelope.Profile
	lenient bool   // an object that does not say what it is is refused; an act on the token must know of each
	known   *table // an earlier connection's; nil: there was none
	allow   bool   // imported keys

	nonces   *growmap.Counts[envelope.KeyID] // nil: not counted
	own      *ownNonces
	leftOpen bool // a session was left open
}

// read makes the table; what old knows of an unchanged object is not asked again.
func (r *keyReader) read(old *table) (*table, error) {
	return r.readWith(old, nil)
}

// readWith is read, with f called beside it for the newest key as soon as that has its fingerprint. It calls f at most once.
func (r *keyReader) readWith(old *table, f func(p *readPool, newest *heldKey)) (t *table, err error) {
	p := r.pool()
	defer func() {
		if closeErr := p.close(); err == nil && closeErr != nil {
			t, err = nil, closeErr
		}
	}()
	if f != nil {
		p.grow(testSessions)
	}
	var handles []p11.Object
	err = p.on(func(s *readSession) error {
		handles, err = r.api.FindSecretKeys(s.Session, r.ring, maxRingKeys+1)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("finding the keys of ring %s: %w", r.ring, err)
	}
	if len(handles) > maxRingKeys {
		return nil, fmt.Errorf("finding the keys of ring %s: %w: more than %d objects bear its label", r.ring, envelope.ErrAmbiguous, maxRingKeys)
	}
	p.grow(len(handles))
	all := make([]*heldKey, len(handles))
	unread := make([]error, len(handles))
	if err := p.each(len(all), func(s *readSession, i int) error {
		inspect := func(s *readSession) (err error) {
			all[i], err = r.inspect(s.Session, handles[i], old)
			return err
		}
		return p.retry(s, inspect, func(s *readSession, err error) error {
			if !r.lenient {
				return err
			}
			unread[i] = err
			all[i] = &heldKey{handle: handles[i], key: envelope.Key{ID: envelope.KeyID{Ring: r.ring}}}
			all[i].refuse("the token does not say what it is: %v", err)
			return p.replace(s)
		})
	}); err != nil {
		return nil, err
	}
	failed, err := r.fingerprintAll(p, all, f)
	if err != nil {
		return nil, err
	}
	t = tableOf(all)
	if failed = errors.Join(failed, errors.Join(unread...)); failed != nil && len(t.newest(hasFailed)) == 0 {
		return nil, failed
	}
	return t, nil
}

// isOfKey reports whether an error may be one key's alone: the token has answered.
func isOfKey(err error) bool {
	_, isCKR := p11.RVOf(err)
	return isCKR || errors.Is(err, envelope.ErrSelfTest)
}

func hasFailed(k *heldKey) bool { return k.failed != nil }

// fail notes that the token cannot use the key just now. The key is refused, unless an earlier connection has used it: then
// its key_id is known, and it is held, to be suspended.
func (r *keyReader) fail(held *heldKey, err error) {
	if r.known != nil {
		for _, before := range r.known.byID {
			if bytes.Equal(before.key.CKAID, held.key.CKAID) && r.known.only(before) {
				held.key.ID, held.proof, held.sample, held.failed = before.key.ID, before.proof, before.sample, err
				return
			}
		}
	}
	held.refuse("the token cannot use it now: %v", err)
}

// fingerprintAll takes the fingerprints that are missing, those of the newest keys first. failed is what it said of keys that it
// refuses therefore; err is not one key's.
func (r *keyReader) fingerprintAll(p *readPool, all []*heldKey, f func(p *readPool, newest *heldKey)) (failed, err error) {
	var missing []*heldKey
	for _, held := range all {
		if held.key.Refused == "" && held.proof == nil {
			missing = append(missing, held)
		}
	}
	slices.SortStableFunc(missing, newestFirst)
	problems := make([]error, len(missing))
	var beside sync.WaitGroup
	err = p.each(len(missing), func(s *readSession, i int) error {
		held := missing[i]
		fingerprint := func(s *readSession) error { return r.fingerprint(p, s, held) }
		err := p.retry(s, fingerprint, func(s *readSession, err error) error {
			problems[i] = err
			r.fail(held, err) // it may be this key alone that the token cannot use just now
			return p.replace(s)
		})
		if err == nil && held.key.Refused == "" && held.failed == nil && i == 0 && f != nil {
			beside.Go(func() { f(p, held) })
		}
		return err
	})
	beside.Wait()
	return errors.Join(problems...), err
}

// testSessions is how many sessions the self-test can use at once.
const testSessions = 4

// readAndTest reads the ring and proves the profile beside it, with the newest key that passes.
func (r *keyReader) readAndTest(ctx context.Context) (*table, error) {
	tested := false
	var testErr error
	keys, err := r.readWith(nil, func(p *readPool, newest *heldKey) {
		tested, testErr = true, selfTest(ctx, p, newest)
	})
	switch {
	case err != nil:
		return nil, err
	case tested && !errors.Is(testErr, envelope.ErrSelfTest):
		return keys, testErr
	}
	return keys, r.testNewest(ctx, keys)
}

// testNewest proves the profile with one key after the other.
func (r *keyReader) testNewest(ctx context.Context, keys *table) (err error) {
	p := r.pool()
	defer func() { err = cmp.Or(err, p.close()) }()
	var failed error
	for _, held := range keys.newest(hasFailed) {
		err := selfTest(ctx, p, held)
		if err == nil {
			return nil
		}
		if failed = errors.Join(failed, err); !errors.Is(err, envelope.ErrSelfTest) {
			break
		}
	}
	return failed
}

func selfTest(ctx context.Context, p *readPool, held *heldKey) error {
	id := held.key.ID
	err := envelope.SelfTest(ctx, &sessionToken{pool: p, held: held}, p.r.profile, id)
	if err != nil && !errors.Is(err, envelope.ErrNonceRepeated) { // such a token goes on opening
		return fmt.Errorf("trying %s: %w", id, err)
	}
	return nil
}

// inspect reads one object, but for its fingerprint.
func (r *keyReader) inspect(s p11.Session, handle p11.Object, old *table) (*heldKey, error) {
	if old != nil {
		ckaID, err := r.api.Attribute(s, handle, pkcs11.CKA_ID)
		if err != nil {
			return nil, fmt.Errorf("reading CKA_ID of a key of ring %s: %w", r.ring, err)
		}
		// A refused key is looked at again: what was wrong with it, or with the look at it, may have passed.
		if known := old.byHandle[handle]; known != nil && known.key.Refused == "" && bytes.Equal(known.key.CKAID, ckaID) {
			return known, nil
		}
	}
	attributes, err := r.describe(s, handle)
	if err != nil {
		return nil, err
	}
	ckaID := attributes[pkcs11.CKA_ID]
	held := &heldKey{handle: handle, key: envelope.Key{CKAID: ckaID, Attributes: attributes.attributes()}}
	key := &held.key
	key.Activation, _ = envelope.ActivationOf(ckaID)
	key.ID.Ring = r.ring
	key.ID.Version, err = envelope.VersionOf(ckaID)
	if err != nil {
		key.Refused = err.Error()
		return held, nil
	}
	key.Refused = r.refusal(attributes, key.Attributes)
	return held, nil
}

func (r *keyReader) fits(kind uint64) bool {
	if r.profile.UsesAES() {
		return kind == pkcs11.CKK_AES
	}
	return kind == pkcs11.CKK_GENERIC_SECRET || kind == pkcs11.CKK_SHA256_HMAC
}

// fingerprint sets key_id and proof. A token that will not use the key so makes the key refused; any other
// failure is the token's.
func (r *keyReader) fingerprint(p *readPool, s *readSession, held *heldKey) error {
	proof, fingerprint, err := held.fingerprint(r.api, s.Session, r.profile)
	if err == nil {
		held.proof, held.key.ID.Fingerprint = proof, fingerprint
		if r.profile == envelope.HMACKDF {
			return nil
		}
		if held.sample, err = r.sampleOf(s.Session, held); err == nil {
			// A key that can only encrypt would take the token with it when it is exercised.
			if err = held.reopen(r.api, s.Session); err == nil {
				return nil
			}
		}
		if errors.Is(err, envelope.ErrNonceRepeated) {
			return nil // it goes on opening
		}
		if rv, isCKR := p11.RVOf(err); held.sample != nil && classOf(err) == classData && !(isCKR && keyCannot(rv)) {
			err = fmt.Errorf("%w: it cannot open what it sealed: %w", envelope.ErrSelfTest, err)
		}
	}
	if rv, isCKR := p11.RVOf(err); !isCKR || !keyCannot(rv) {
		return fmt.Errorf("taking the fingerprint of %s: %w", held.key.ID.Version, err)
	}
	held.refuse("the token does not use it as %s: %v", r.profile, err)
	return p.replace(s)
}

// sampleOf gives the sample of a key whose proof is known.
func (r *keyReader) sampleOf(s p11.Session, held *heldKey) (*sample, error) {
	if r.profile == envelope.AESGCMHSMIV {
		return r.takeSample(s, held)
	}
	probe := envelope.NewFingerprintProbe()
	return &sample{nonce: probe.Nonce[:], associated: probe.Associated, plaintext: probe.Plaintext, sealed: held.proof}, nil
}
