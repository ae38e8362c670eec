package hsm

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// maxRingKeys bounds the objects of one label that are looked at.
const maxRingKeys = 4096

// table is the ring as a generation holds it. It is replaced whole, never changed.
type table struct {
	byID     map[envelope.KeyID]*heldKey
	byHandle map[p11.Object]*heldKey
	keys     []envelope.Key // refused ones too
}

// newest are the keys with which the token is tried, the latest first: a few, because one bad key must not condemn the
// token, and what ails the token shows with each. Those that but names are left out; nil: none are.
func (t *table) newest(but func(*heldKey) bool) []*heldKey {
	keys := slices.SortedFunc(maps.Values(t.byID), newestFirst)
	if but != nil {
		keys = slices.DeleteFunc(keys, but)
	}
	return keys[:min(len(keys), triedKeys)]
}

func newestFirst(a, b *heldKey) int {
	return cmp.Or(b.key.Activation.Compare(a.key.Activation), bytes.Compare(b.key.CKAID, a.key.CKAID))
}

// has reports whether an object with that CKA_ID was shown.
func (t *table) has(ckaID []byte) bool {
	return slices.ContainsFunc(t.keys, func(k envelope.Key) bool { return bytes.Equal(k.CKAID, ckaID) })
}

// only reports whether no other key of the table has the CKA_ID.
func (t *table) only(held *heldKey) bool {
	for _, other := range t.byID {
		if other != held && bytes.Equal(other.key.CKAID, held.key.CKAID) {
			return false
		}
	}
	return true
}

// with is the table with another handle for the key, and without it for the handle 0.
func (t *table) with(id envelope.KeyID, handle p11.Object) *table {
	held := t.byID[id]
	if held == nil || held.handle == handle {
		return t
	}
	next := &table{byID: maps.Clone(t.byID), byHandle: maps.Clone(t.byHandle), keys: t.keys}
	delete(next.byHandle, held.handle)
	if handle == 0 {
		delete(next.byID, id)
		next.keys = slices.DeleteFunc(slices.Clone(t.keys), func(k envelope.Key) bool { return k.ID == id })
		return next
	}
	moved := *held
	moved.handle = handle
	next.byID[id], next.byHandle[handle] = &moved, &moved
	return next
}

// triedKeys is with how many keys the token is tried before it is given up.
const triedKeys = 3

// heldKey is one object of the ring and the handle that this generation knows it by.
type heldKey struct {
	handle p11.Object
	key    envelope.Key
	// proof is what only this key gives: the fingerprint's ciphertext and tag, its two blocks, or its HMAC. Never published.
	proof []byte
	// sample serves to tell a token that cannot use the key from a ciphertext that is not authentic. nil: there is none,
	// because the profile needs none, or because the token seals no more with the key.
	sample *sample
	// failed is why the token could not use the key when it was read; proof and sample are an earlier connection's. nil: it could.
	failed error
}

// sample is something that a key has sealed.
type sample struct{ nonce, associated, plaintext, sealed []byte }

// refuse keeps a key from being served. Without its fingerprint nobody takes it for another one, or for one that is gone.
func (k *heldKey) refuse(format string, args ...any) {
	k.key.Refused, k.key.ID.Fingerprint = fmt.Sprintf(format, args...), [envelope.FingerprintSize]byte{}
}

// keyReader reads the ring: on one session, and on more at once where it has them. A session on which something failed is
// replaced, because a failed operation may leave it unusable.
type keyReader struct {
	api      p11.API
	slot     uint
	session  p11.Session
	beside   []p11.Session               // more of them; the caller's when the reading has ended
	room     int                         // how many more may be opened
	open     func() (p11.Session, error) // opens one of these
	ring     string
	profile  envelope.Profile
	lenient  bool    // an object that does not say what it is is refused; an act on the token must know of each
	known    *table  // an earlier connection's; nil: there was none
	allow    bool    // imported keys
	nonces   *nonces // nil: not counted
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
		return p.twice(s, inspect, func(s *readSession, err error) error {
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
	said := make([]error, len(missing))
	var beside sync.WaitGroup
	err = p.each(len(missing), func(s *readSession, i int) error {
		held := missing[i]
		fingerprint := func(s *readSession) error { return r.fingerprint(p, s, held) }
		err := p.twice(s, fingerprint, func(s *readSession, err error) error {
			said[i] = err
			r.fail(held, err) // it may be this key alone that the token cannot use just now
			return p.replace(s)
		})
		if err == nil && held.key.Refused == "" && held.failed == nil && i == 0 && f != nil {
			beside.Go(func() { f(p, held) })
		}
		return err
	})
	beside.Wait()
	return errors.Join(said...), err
}

// tableOf makes a table of what was read.
func tableOf(all []*heldKey) *table {
	t := &table{byID: map[envelope.KeyID]*heldKey{}, byHandle: map[p11.Object]*heldKey{}}
	for _, held := range all {
		t.byHandle[held.handle] = held
		t.keys = append(t.keys, held.key)
		if held.key.Refused == "" {
			t.byID[held.key.ID] = held
		}
	}
	return t
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
	told, err := r.describe(s, handle)
	if err != nil {
		return nil, err
	}
	ckaID := told[pkcs11.CKA_ID]
	held := &heldKey{handle: handle, key: envelope.Key{CKAID: ckaID, Attributes: told.attributes()}}
	key := &held.key
	key.Activation, _ = envelope.ActivationOf(ckaID)
	key.ID.Ring = r.ring
	key.ID.Version, err = envelope.VersionOf(ckaID)
	if err != nil {
		key.Refused = err.Error()
		return held, nil
	}
	key.Refused = r.refusal(told, key.Attributes)
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

// keyCannot tells the return values that speak of this key or mechanism, and not of the token's health.
func keyCannot(rv p11.RV) bool {
	switch rv {
	case pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, pkcs11.CKR_KEY_TYPE_INCONSISTENT, pkcs11.CKR_KEY_SIZE_RANGE,
		pkcs11.CKR_MECHANISM_INVALID, pkcs11.CKR_MECHANISM_PARAM_INVALID, pkcs11.CKR_FUNCTION_NOT_SUPPORTED:
		return true
	}
	return false
}

// fingerprint makes the proof and the fingerprint: one operation.
func (k *heldKey) fingerprint(api p11.API, s p11.Session, profile envelope.Profile) (proof []byte, fp [envelope.FingerprintSize]byte, err error) {
	if profile == envelope.HMACKDF {
		proof, err = api.HMAC(time.Time{}, s, k.handle, envelope.FingerprintMessage())
		if err != nil {
			return nil, fp, err
		}
		if len(proof) != envelope.MACSize {
			return nil, fp, fmt.Errorf("%w: an HMAC of %d bytes", envelope.ErrSelfTest, len(proof))
		}
		fp, err = envelope.FingerprintMAC([envelope.MACSize]byte(proof))
		return proof, fp, err
	}
	if profile == envelope.AESGCMHSMIV {
		proof, err = api.EncryptECB(time.Time{}, s, k.handle, envelope.FingerprintBlocks())
		if err != nil {
			return nil, fp, fmt.Errorf("CKM_AES_ECB, by which this profile takes the fingerprint: %w", err)
		}
		fp, err = envelope.FingerprintECB(proof)
		return proof, fp, err
	}
	probe := envelope.NewFingerprintProbe()
	proof, err = api.EncryptGCM(time.Time{}, s, k.handle, probe.Nonce[:], probe.Associated, probe.Plaintext)
	if err != nil {
		return nil, fp, err
	}
	fp, err = envelope.FingerprintGCM(proof)
	return proof, fp, err
}

// errWrongKey: the handle does not name the key it named. It must never be sealed with again.
var errWrongKey = errors.New("the key behind the handle is another one")

// check uses the key in every direction that its profile has, and compares with what it gave before.
func (k *heldKey) check(api p11.API, s p11.Session, profile envelope.Profile) error {
	proof, _, err := k.fingerprint(api, s, profile)
	if err != nil {
		return err
	}
	if !hmac.Equal(proof, k.proof) {
		return errWrongKey
	}
	if profile == envelope.HMACKDF {
		return nil
	}
	return k.reopen(api, s)
}

// reopen decrypts the sample of an AES key: one operation. Without a sample it compares the two blocks.
func (k *heldKey) reopen(api p11.API, s p11.Session) error {
	if k.sample == nil {
		proof, _, err := k.fingerprint(api, s, envelope.AESGCMHSMIV)
		if err == nil && !hmac.Equal(proof, k.proof) {
			err = errWrongKey
		}
		return err
	}
	out, err := api.DecryptGCM(time.Time{}, s, k.handle, k.sample.nonce, k.sample.associated, k.sample.sealed)
	if err != nil {
		return err
	}
	if !bytes.Equal(out, k.sample.plaintext) {
		return errWrongKey
	}
	return nil
}
