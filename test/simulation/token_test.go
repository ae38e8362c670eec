package simulation

import (
	"cmp"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
)

const ringName = "kube-secrets"

// key is the material of one version and what is told of it.
type key struct {
	envelope.Key
	aead cipher.AEAD
}

// newKey makes version number n of the ring, which becomes current at activation.
func newKey(newID func(time.Time) ([]byte, error), n int, activation time.Time) (*key, error) {
	ckaID, err := newID(activation)
	if err != nil {
		return nil, err
	}
	version, err := envelope.VersionOf(ckaID)
	if err != nil {
		return nil, err
	}
	material := sha256.Sum256(fmt.Appendf(nil, "key %d", n))
	block, err := aes.NewCipher(material[:])
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	probe := envelope.NewFingerprintProbe()
	fingerprint, err := envelope.FingerprintGCM(aead.Seal(nil, probe.Nonce[:], probe.Plaintext, probe.Associated))
	if err != nil {
		return nil, err
	}
	activation, _ = envelope.ActivationOf(ckaID)
	good := envelope.Attributes{Private: true, Sensitive: true, AlwaysSensitive: true, NeverExtractable: true, Local: true}
	id := envelope.KeyID{Ring: ringName, Version: version, Fingerprint: fingerprint}
	return &key{envelope.Key{ID: id, CKAID: ckaID, Activation: activation, Attributes: good}, aead}, nil
}

// hsm is one token, seen by any number of nodes.
type hsm struct {
	name    string
	latency time.Duration // of each operation with a key

	mu   sync.Mutex
	keys map[envelope.KeyID]*key
}

func (h *hsm) add(k *key) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keys[k.ID] = k
}

func (h *hsm) remove(id envelope.KeyID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.keys, id)
}

func (h *hsm) get(id envelope.KeyID) *key {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.keys[id]
}

func (h *hsm) list() map[envelope.KeyID]envelope.Key {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := map[envelope.KeyID]envelope.Key{}
	for id, k := range h.keys {
		list[id] = k.Key
	}
	return list
}

// link is one node's way to one token, as envelope.Token. Like package hsm it knows the keys that it read last, and a key
// that is gone when it is used makes it read again.
type link struct {
	hsm *hsm

	mu         sync.Mutex
	generation uint64 // 0: the way is cut
	connects   uint64
	stalled    bool // the ring cannot be read, and keys can be used: finding objects is slow, or refused for a while
	known      map[envelope.KeyID]envelope.Key
	changed    time.Time // when up or stalled changed last
	refused    error     // why the way is cut; nil: the token cannot be reached
	fault      fault
	calls      int // of operations with a key
}

// fault is a brown-out of a way to a token.
type fault struct {
	slow  time.Duration // what each operation takes more
	fails int           // of ten operations
}

var errStalled = fmt.Errorf("reading the keys: %w", envelope.ErrBusy)

func newLink(h *hsm) *link {
	l := &link{hsm: h}
	l.setUp(true)
	return l
}

func (l *link) setUp(up bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changed, l.refused = time.Now(), nil
	switch {
	case !up:
		l.generation = 0
	case l.generation == 0:
		l.connects++
		l.generation, l.known = l.connects, l.hsm.list()
	}
}

// refuse cuts the way because the token refuses the PIN.
func (l *link) refuse(why error) {
	l.setUp(false)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused = why
}

func (l *link) setFault(f fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fault, l.changed = f, time.Now()
}

// begin is what an operation with a key meets.
func (l *link) begin() (takes time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls++
	if l.calls*7%10 < l.fault.fails {
		err = fmt.Errorf("token %s: %w: CKR_GENERAL_ERROR", l.hsm.name, envelope.ErrUnavailable)
	}
	return l.hsm.latency + l.fault.slow, err
}

func (l *link) setStalled(stalled bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stalled, l.changed = stalled, time.Now()
}

// usable reports whether the way has been up and not stalled since before.
func (l *link) usable(before time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.generation != 0 && !l.stalled && time.Since(l.changed) >= before
}

func (l *link) Name() string { return l.hsm.name }

func (l *link) Generation() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.generation
}

func (l *link) Problem() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.generation == 0 {
		return fmt.Errorf("token %s: %w", l.hsm.name, cmp.Or(l.refused, envelope.ErrUnavailable))
	}
	return nil
}

// Keys takes no time: the ring holds a lock meanwhile, and time in a bubble stands still while a goroutine waits for one.
func (l *link) Keys(context.Context) ([]envelope.Key, error) {
	if err := l.Problem(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stalled {
		return nil, errStalled
	}
	l.known = l.hsm.list()
	var keys []envelope.Key
	for _, k := range l.known {
		keys = append(keys, k)
	}
	return keys, nil
}

// use waits as long as the token takes, and gives the key.
func (l *link) use(ctx context.Context, id envelope.KeyID) (*key, error) {
	began := l.Generation()
	if err := l.Problem(); err != nil {
		return nil, err
	}
	takes, failure := l.begin()
	timer := time.NewTimer(takes)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
	}
	if failure != nil {
		return nil, failure
	}
	if l.Generation() != began {
		return nil, fmt.Errorf("token %s: %w: cut off in a call", l.hsm.name, envelope.ErrUnavailable)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.known[id]; known {
		if k := l.hsm.get(id); k != nil {
			return k, nil
		}
		l.known = l.hsm.list()
	}
	return nil, fmt.Errorf("token %s: %w: %s", l.hsm.name, envelope.ErrUnknownKey, id)
}

func (l *link) EncryptGCM(ctx context.Context, id envelope.KeyID, nonce *[envelope.NonceSize]byte, associated, plaintext []byte) ([]byte, error) {
	k, err := l.use(ctx, id)
	if err != nil {
		return nil, err
	}
	return k.aead.Seal(nil, nonce[:], plaintext, associated), nil
}

func (l *link) DecryptGCM(ctx context.Context, id envelope.KeyID, nonce, associated, sealed []byte) ([]byte, error) {
	k, err := l.use(ctx, id)
	if err != nil {
		return nil, err
	}
	out, err := k.aead.Open(nil, nonce, sealed, associated)
	if err != nil {
		return nil, envelope.ErrUnauthentic
	}
	return out, nil
}

func (l *link) EncryptOwnNonce(context.Context, envelope.KeyID, func(int) []byte, []byte) (nonce, sealed []byte, err error) {
	return nil, nil, errors.New("the tokens of the simulation take the nonce that they are given")
}

func (l *link) EncryptBlocks(context.Context, envelope.KeyID, []byte) ([]byte, error) {
	return nil, errors.New("the tokens of the simulation take the nonce that they are given")
}

func (l *link) MAC(context.Context, envelope.KeyID, []byte) (mac [envelope.MACSize]byte, err error) {
	return mac, errors.New("the simulation has no HMAC keys")
}

// links are one node's tokens: the first that can do it does it. Errors are joined as package hsm does: a token that could
// not be asked says more than one that lacks the key.
type links []*link

func (s links) Members() []envelope.Token {
	var members []envelope.Token
	for _, l := range s {
		members = append(members, l)
	}
	return members
}

func (s links) Name() string { return "all" }

func (s links) Generation() uint64 {
	for _, l := range s {
		if g := l.Generation(); g != 0 {
			return g
		}
	}
	return 0
}

func (s links) Problem() error {
	if s.Generation() != 0 {
		return nil
	}
	return s[0].Problem()
}

func (s links) Keys(ctx context.Context) ([]envelope.Key, error) {
	return onFirst(s, func(l *link) ([]envelope.Key, error) { return l.Keys(ctx) })
}

func (s links) EncryptGCM(ctx context.Context, id envelope.KeyID, nonce *[envelope.NonceSize]byte, associated, plaintext []byte) ([]byte, error) {
	return onFirst(s, func(l *link) ([]byte, error) { return l.EncryptGCM(ctx, id, nonce, associated, plaintext) })
}

func (s links) DecryptGCM(ctx context.Context, id envelope.KeyID, nonce, associated, sealed []byte) ([]byte, error) {
	return onFirst(s, func(l *link) ([]byte, error) { return l.DecryptGCM(ctx, id, nonce, associated, sealed) })
}

func (s links) EncryptOwnNonce(ctx context.Context, id envelope.KeyID, associated func(int) []byte, plaintext []byte) (nonce, sealed []byte, err error) {
	return s[0].EncryptOwnNonce(ctx, id, associated, plaintext)
}

func (s links) EncryptBlocks(ctx context.Context, id envelope.KeyID, blocks []byte) ([]byte, error) {
	return s[0].EncryptBlocks(ctx, id, blocks)
}

func (s links) MAC(ctx context.Context, id envelope.KeyID, data []byte) ([envelope.MACSize]byte, error) {
	return onFirst(s, func(l *link) ([envelope.MACSize]byte, error) { return l.MAC(ctx, id, data) })
}

func onFirst[T any](s links, f func(*link) (T, error)) (out T, err error) {
	var away, lacking []error
	for _, l := range s {
		if out, err = f(l); err == nil || errors.Is(err, envelope.ErrUnauthentic) {
			return out, err
		}
		if errors.Is(err, envelope.ErrUnknownKey) {
			lacking = append(lacking, err)
		} else {
			away = append(away, err)
		}
	}
	if len(away) > 0 {
		return out, errors.Join(away...)
	}
	return out, errors.Join(lacking...)
}
