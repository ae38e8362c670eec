package envelope

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"
	"time"
)

// softToken is a token in software: real AES-GCM and HMAC under keys that it holds, and switches to misbehave. The
// functions that are set replace what it would do; they are set before the token is used by several goroutines.
type softToken struct {
	name string

	encrypt func(aead cipher.AEAD, nonce, associated, plaintext []byte) ([]byte, error)
	decrypt func(aead cipher.AEAD, nonce, associated, sealed []byte) ([]byte, error)
	mac     func(key, data []byte) [MACSize]byte
	blocks  func(in []byte) []byte
	nonce   func() []byte // makes the nonces of EncryptOwnNonce; nil: 12 random bytes
	onKeys  func()        // called by Keys before it answers, outside the lock

	distrusted error // why, if it was; set by Exercise alone

	mu         sync.Mutex
	generation uint64
	held       map[KeyID][]byte
	keys       []Key
	fail       error // what every operation says; nil: it works
	reads      int   // calls of Keys
	uses       map[KeyID]int
}

// newSoftToken makes a token in its first generation that holds keys.
func newSoftToken(name string, keys ...softKey) *softToken {
	t := &softToken{name: name, generation: 1, held: map[KeyID][]byte{}, uses: map[KeyID]int{}}
	t.add(keys...)
	return t
}

// softKey is key material and what a token tells of it.
type softKey struct {
	Key
	material []byte
}

// newSoftKey makes a key whose material is a hash of seed, so that equal seeds are copies of one key.
func newSoftKey(profile Profile, ring string, ckaID []byte, seed string) softKey {
	material := sha256.Sum256([]byte(seed))
	version, err := VersionOf(ckaID)
	if err != nil {
		panic(err)
	}
	activation, _ := ActivationOf(ckaID)
	id := KeyID{Ring: ring, Version: version, Fingerprint: softFingerprint(profile, material[:])}
	good := Attributes{Private: true, Sensitive: true, AlwaysSensitive: true, NeverExtractable: true, Local: true}
	return softKey{Key{ID: id, CKAID: ckaID, Activation: activation, Attributes: good}, material[:]}
}

func softFingerprint(profile Profile, material []byte) (fp [FingerprintSize]byte) {
	var err error
	switch profile {
	case HMACKDF:
		fp, err = FingerprintMAC(softMAC(material, FingerprintMessage()))
	case AESGCMHSMIV:
		fp, err = FingerprintECB(softECB(material, FingerprintBlocks()))
	default:
		probe := NewFingerprintProbe()
		fp, err = FingerprintGCM(softGCM(material, NonceSize).Seal(nil, probe.Nonce[:], probe.Plaintext, probe.Associated))
	}
	if err != nil {
		panic(err)
	}
	return fp
}

// keyAt makes a key of ring "r", profile aes-gcm, that becomes current at the instant.
func keyAt(at time.Time, seed string) softKey {
	random := sha256.Sum256([]byte(seed))
	id, err := ckaID(at, [idRandom]byte(random[:]))
	if err != nil {
		panic(err)
	}
	return newSoftKey(AESGCM, "r", id, seed)
}

// emergencyKeyAt is keyAt for a key that waits for no token.
func emergencyKeyAt(at time.Time, seed string) softKey {
	id, err := NewEmergencyCKAID(at)
	if err != nil {
		panic(err)
	}
	return newSoftKey(AESGCM, "r", id, seed)
}

// foreignKey makes a key of ring "r", profile aes-gcm, that was made elsewhere.
func foreignKey(ckaID, seed string) softKey { return newSoftKey(AESGCM, "r", []byte(ckaID), seed) }

func (t *softToken) add(keys ...softKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range keys {
		t.held[k.ID] = k.material
		t.keys = append(t.keys, k.Key)
	}
}

func (t *softToken) remove(id KeyID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.held, id)
	t.keys = slices.DeleteFunc(t.keys, func(k Key) bool { return k.ID == id })
}

// connect makes the token's generation n; 0: it cannot be used.
func (t *softToken) connect(n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.generation = n
}

// failWith makes every operation fail; nil: no more.
func (t *softToken) failWith(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fail = err
}

// used counts the operations with the key so far, readsSoFar the reads of the ring.
func (t *softToken) used(id KeyID) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.uses[id]
}

func (t *softToken) readsSoFar() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reads
}

func (t *softToken) Name() string { return t.name }

func (t *softToken) Generation() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.generation
}

// Problem is why the token cannot be used.
func (t *softToken) Problem() error {
	if t.Generation() == 0 {
		return fmt.Errorf("soft token %s: %w", t.name, ErrUnavailable)
	}
	return nil
}

// trouble is why no operation works now; nil: they do.
func (t *softToken) trouble(ctx context.Context) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case t.generation == 0:
		return fmt.Errorf("soft token %s: %w", t.name, ErrUnavailable)
	}
	return t.fail
}

func (t *softToken) Keys(ctx context.Context) ([]Key, error) {
	if t.onKeys != nil {
		t.onKeys()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reads++
	if err := t.trouble(ctx); err != nil {
		return nil, err
	}
	return slices.Clone(t.keys), nil
}

func (t *softToken) material(ctx context.Context, id KeyID) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.uses[id]++
	if err := t.trouble(ctx); err != nil {
		return nil, err
	}
	if key := t.held[id]; key != nil {
		return key, nil
	}
	return nil, fmt.Errorf("soft token %s: %w", t.name, ErrUnknownKey)
}

func (t *softToken) EncryptGCM(ctx context.Context, id KeyID, nonce *[NonceSize]byte, associated, plaintext []byte) ([]byte, error) {
	key, err := t.material(ctx, id)
	if err != nil {
		return nil, err
	}
	return t.seal(key, nonce[:], associated, plaintext)
}

func (t *softToken) seal(key, nonce, associated, plaintext []byte) ([]byte, error) {
	if t.encrypt != nil {
		return t.encrypt(softGCM(key, len(nonce)), nonce, associated, plaintext)
	}
	return softGCM(key, len(nonce)).Seal(nil, nonce, plaintext, associated), nil
}

func (t *softToken) EncryptOwnNonce(ctx context.Context, id KeyID, associated func(int) []byte, plaintext []byte) (nonce, sealed []byte, err error) {
	key, err := t.material(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	nonce = make([]byte, NonceSize)
	_, _ = rand.Read(nonce)
	if t.nonce != nil {
		nonce = t.nonce()
	}
	sealed, err = t.seal(key, nonce, associated(len(nonce)), plaintext)
	return nonce, sealed, err
}

func (t *softToken) DecryptGCM(ctx context.Context, id KeyID, nonce, associated, sealed []byte) ([]byte, error) {
	key, err := t.material(ctx, id)
	if err != nil {
		return nil, err
	}
	open := t.decrypt
	if open == nil {
		open = func(aead cipher.AEAD, nonce, associated, sealed []byte) ([]byte, error) {
			return aead.Open(nil, nonce, sealed, associated)
		}
	}
	plaintext, err := open(softGCM(key, len(nonce)), nonce, associated, sealed)
	if err != nil {
		return nil, ErrUnauthentic
	}
	return plaintext, nil
}

func (t *softToken) EncryptBlocks(ctx context.Context, id KeyID, blocks []byte) ([]byte, error) {
	key, err := t.material(ctx, id)
	if err != nil {
		return nil, err
	}
	if t.blocks != nil {
		return t.blocks(blocks), nil
	}
	return softECB(key, blocks), nil
}

func softECB(key, blocks []byte) []byte {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	out := make([]byte, len(blocks))
	for at := 0; at < len(out); at += aes.BlockSize {
		block.Encrypt(out[at:], blocks[at:])
	}
	return out
}

func (t *softToken) MAC(ctx context.Context, id KeyID, data []byte) ([MACSize]byte, error) {
	key, err := t.material(ctx, id)
	if err != nil {
		return [MACSize]byte{}, err
	}
	if t.mac != nil {
		return t.mac(key, data), nil
	}
	return softMAC(key, data), nil
}

func softGCM(key []byte, nonceSize int) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCMWithNonceSize(block, nonceSize)
	if err != nil {
		panic(err)
	}
	return aead
}

func softMAC(key, data []byte) [MACSize]byte {
	h := hmac.New(sha256.New, key)
	h.Write(data)
	return [MACSize]byte(h.Sum(nil))
}

func (t *softToken) Distrust(why error) { t.distrusted = why }
