package hsm

import (
	"context"
	"fmt"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/noncememory"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/internal/growmap"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// ownNonces is how a token makes nonces (profile aes-gcm-hsm-iv), and what is remembered of them.
type ownNonces struct {
	token    string
	appended bool // 16 bytes after the tag; otherwise 12 where the caller's IV is
	memory   *noncememory.Memory
	counts   *growmap.Counts[envelope.KeyID]
}

func (o *ownNonces) size() int {
	if o.appended {
		return envelope.LongNonceSize
	}
	return envelope.NonceSize
}

// encrypt seals on one session. What it gives begins with the nonce, which note must be told before anything is used of it.
func (o *ownNonces) encrypt(api p11.API, until time.Time, s p11.Session, key p11.Object, associated, plaintext []byte) ([]byte, error) {
	nonce := make([]byte, o.size())
	out, err := api.EncryptGCMOwnIV(until, s, key, nonce, associated, plaintext)
	if err != nil {
		return nil, err
	}
	sealed := len(plaintext) + envelope.TagSize
	switch {
	case o.appended && len(out) == sealed+len(nonce):
		return append(out[sealed:len(out):len(out)], out[:sealed]...), nil
	case !o.appended && len(out) == sealed:
		return append(nonce, out...), nil
	}
	err = fmt.Errorf("token %s: %w: sealing %d bytes gave %d", o.token, envelope.ErrSelfTest, len(plaintext), len(out))
	switch {
	case o.appended && len(out) == sealed:
		return nil, hint.Wrap(err, "take ivAppended from this token in the configuration: it appends no nonce")
	case !o.appended && len(out) == sealed+envelope.LongNonceSize:
		return nil, hint.Wrap(err, "set ivAppended: true for this token in the configuration: it appends the nonce")
	}
	return nil, err
}

// note splits what encrypt gave, when it has made sure that the nonce was not used before. One that the envelope does not
// use is not remembered.
func (o *ownNonces) note(id envelope.KeyID, out []byte) (nonce, sealed []byte, err error) {
	nonce, sealed = out[:o.size():o.size()], out[o.size():]
	if envelope.UsableNonce(nonce) {
		if err := o.memory.Note(o.token, id.Fingerprint, nonce); err != nil {
			clear(out)
			return nil, nil, err
		}
	}
	return nonce, sealed, nil
}

// EncryptOwnNonce implements envelope.Token.
func (t *Token) EncryptOwnNonce(ctx context.Context, id envelope.KeyID, associated func(int) []byte, plaintext []byte) (nonce, sealed []byte, err error) {
	if err := t.own.memory.Check(t.cfg.Name, id.Fingerprint); err != nil {
		return nil, nil, err
	}
	t.nonces.Add(id)
	bound := associated(t.own.size())
	out, err := t.operate(ctx, id, operation{name: "C_Encrypt", in: [3][]byte{bound, plaintext}, run: func(api p11.API, until time.Time, s p11.Session, key p11.Object) ([]byte, error) {
		return t.own.encrypt(api, until, s, key, bound, plaintext)
	}})
	if err != nil {
		return nil, nil, err
	}
	return t.own.note(id, out)
}

// sealOwn is EncryptOwnNonce on one session of a reading.
func (r *keyReader) sealOwn(s p11.Session, held *heldKey, associated func(int) []byte, plaintext []byte) (nonce, sealed []byte, err error) {
	if err := r.own.memory.Check(r.own.token, held.key.ID.Fingerprint); err != nil {
		return nil, nil, err
	}
	r.own.counts.Add(held.key.ID)
	out, err := r.own.encrypt(r.api, time.Time{}, s, held.handle, associated(r.own.size()), plaintext)
	if err != nil {
		return nil, nil, err
	}
	return r.own.note(held.key.ID, out)
}

// takeSample seals something that is no secret, under a nonce of the token.
func (r *keyReader) takeSample(s p11.Session, held *heldKey) (*sample, error) {
	taken := &sample{plaintext: []byte("hsm-kms sample")}
	for range sampleTries {
		var err error
		taken.nonce, taken.sealed, err = r.sealOwn(s, held, func(size int) []byte {
			taken.associated = append([]byte("hsm-kms/sample/1\x00"), byte(size))
			return taken.associated
		}, taken.plaintext)
		if err != nil {
			return nil, err
		}
		if envelope.UsableNonce(taken.nonce) {
			return taken, nil
		}
	}
	return nil, hint.Wrap(fmt.Errorf("token %s: %w: it made no nonce that can be used in %d attempts", r.own.token, envelope.ErrSelfTest, sampleTries),
		"set profile: aes-gcm if the token takes the nonce of its caller, and hmac-kdf otherwise")
}

// sampleTries is how often a sample is taken because of its nonce.
const sampleTries = 3
