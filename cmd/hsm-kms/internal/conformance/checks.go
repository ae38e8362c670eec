package conformance

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// callers is how many use the token at one time in one of the checks.
const callers = 16

// checks are all of them, in order. What cannot be without an earlier one is not tried after it failed.
func (r *run) checks(ctx context.Context) {
	ok := r.check(ctx, "a key is made for the profile, and nothing else is left", func(ctx context.Context) (string, error) {
		_, err := r.makeKey(ctx, time.Now().Add(-time.Minute))
		return "", err
	})
	if !ok {
		return
	}
	ok = r.check(ctx, "login, first reading and proof of the key", func(ctx context.Context) (string, error) { return "", r.connect(ctx) })
	if !ok {
		return
	}
	for _, c := range []struct {
		name string
		do   func(context.Context) (string, error)
	}{
		{"the ring reads the same twice", r.readsTheSame},
		{"the self-test of the profile", r.selfTest},
		{"DEKs of 1 to 512 bytes come back", r.sizes},
		{"what is sealed for an outage hold opens", r.hold},
		{"no change to an envelope goes unnoticed", r.tampering},
		{fmt.Sprintf("%d callers at one time", callers), r.concurrency},
		{"callers whose time is over", r.deadlines},
		{"a key that another process makes is served", r.liveRing},
		{"an unknown key_id is unknown", r.unknownKey}, // it has the plugin look in a second process of the module
		{"another connection shows the same key_ids", r.reconnect},
	} {
		r.check(ctx, c.name, c.do)
	}
}

// readsTheSame: what is read of a ring does not change from one reading to the next.
func (r *run) readsTheSame(ctx context.Context) (string, error) {
	first, err := r.texts(ctx)
	if err != nil {
		return "", err
	}
	second, err := r.texts(ctx)
	if err == nil && !slices.Equal(first, second) {
		err = fmt.Errorf("%q, and then %q", first, second)
	}
	return fmt.Sprintf("keys: %d", len(first)), err
}

// texts are the keys of the ring, sorted.
func (r *run) texts(ctx context.Context) ([]string, error) {
	keys, err := r.in.Set.Keys(ctx)
	if err != nil {
		return nil, err
	}
	var texts []string
	for _, k := range keys {
		texts = append(texts, k.ID.String()+" "+string(k.CKAID)+" "+k.Refused)
	}
	slices.Sort(texts)
	return texts, nil
}

func (r *run) selfTest(ctx context.Context) (string, error) {
	return "", envelope.SelfTest(ctx, r.in.Set, r.common.Profile, r.id)
}

// hold: an outage hold needs keys that are derived in the token, the same each time.
func (r *run) hold(ctx context.Context) (string, error) {
	day, dek := envelope.DayOf(time.Now()), make([]byte, 32)
	_, _ = rand.Read(dek)
	key, err := envelope.DeriveHoldKey(ctx, r.in.Set, r.common.Profile, r.id, day)
	if err != nil {
		return "", fmt.Errorf("deriving a hold key: %w", err)
	}
	wrapped, err := envelope.SealHold(&key, r.id, day, dek)
	if err != nil {
		return "", err
	}
	opened, err := r.in.Ring.Open(ctx, r.id.HoldString(), wrapped)
	if err == nil && !bytes.Equal(opened, dek) {
		err = errors.New("it came back changed")
	}
	return "", err
}

// sizes: every length of DEK that an envelope can hold.
func (r *run) sizes(ctx context.Context) (string, error) {
	dek := make([]byte, envelope.MaxDEK)
	_, _ = rand.Read(dek)
	for size := 1; size <= envelope.MaxDEK; size++ {
		wrapped, err := r.in.Ring.Seal(ctx, r.id, dek[:size])
		if err != nil {
			return "", fmt.Errorf("sealing %d bytes: %w", size, err)
		}
		opened, err := r.in.Ring.Open(ctx, r.id.String(), wrapped)
		if err != nil {
			return "", fmt.Errorf("opening %d bytes: %w", size, err)
		}
		if !bytes.Equal(opened, dek[:size]) {
			return "", fmt.Errorf("%d bytes came back changed", size)
		}
	}
	return "", nil
}

// tampering: no change to an envelope goes unnoticed, none is taken for a failure of the token.
func (r *run) tampering(ctx context.Context) (string, error) {
	wrapped, err := r.in.Ring.Seal(ctx, r.id, bytes.Repeat([]byte{7}, 32))
	if err != nil {
		return "", err
	}
	initialized, logins := r.calls.of("C_Initialize"), r.calls.of("C_Login")
	refused := func(what string, at int, changed []byte) error {
		dek, err := r.in.Ring.Open(ctx, r.id.String(), changed)
		clear(dek)
		if !errors.Is(err, envelope.ErrUnauthentic) && !errors.Is(err, envelope.ErrMalformed) {
			return fmt.Errorf("%s %d: %w", what, at, cmpErr(err))
		}
		return nil
	}
	for i := range wrapped {
		for _, bit := range []byte{0x01, 0x80} {
			changed := bytes.Clone(wrapped)
			changed[i] ^= bit
			if err := refused("changed byte", i, changed); err != nil {
				return "", err
			}
		}
		if err := refused("cut at", i, wrapped[:i]); err != nil {
			return "", err
		}
	}
	if err := refused("one byte more than", len(wrapped), append(bytes.Clone(wrapped), 0)); err != nil {
		return "", err
	}
	if r.calls.of("C_Initialize") != initialized || r.calls.of("C_Login") != logins {
		return "", errors.New("changed envelopes led to a new connection or login")
	}
	_, err = r.in.Ring.Open(ctx, r.id.String(), wrapped)
	return "", err
}

// cmpErr is an error that says that there was none.
func cmpErr(err error) error {
	if err == nil {
		return errors.New("it opens")
	}
	return err
}

// unknownKey: a key is found by its key_id alone.
func (r *run) unknownKey(ctx context.Context) (string, error) {
	wrapped, err := r.in.Ring.Seal(ctx, r.id, []byte("a DEK"))
	if err != nil {
		return "", err
	}
	otherMaterial, otherVersion := r.id, r.id
	otherMaterial.Fingerprint[0] ^= 1
	otherVersion.Version = "x00"
	for _, other := range []envelope.KeyID{otherMaterial, otherVersion} {
		if _, err := r.in.Ring.Open(ctx, other.String(), wrapped); !errors.Is(err, envelope.ErrUnknownKey) {
			return "", fmt.Errorf("%s: %w", other, cmpErr(err))
		}
	}
	return "", nil
}

// concurrency: many callers on few sessions, of which there are never more than configured and one for login.
func (r *run) concurrency(ctx context.Context) (string, error) {
	errs := make([]error, callers)
	var running sync.WaitGroup
	for i := range errs {
		running.Go(func() {
			for range 10 {
				if errs[i] == nil {
					errs[i] = envelope.Prove(ctx, r.in.Set, r.common.Profile, r.id)
				}
			}
		})
	}
	running.Wait()
	if err := errors.Join(errs...); err != nil {
		return "", err
	}
	most := r.calls.mostSessions()
	if most > r.token.MaxSessions+1 {
		return "", fmt.Errorf("%d sessions were open at once, %d and one for login are allowed", most, r.token.MaxSessions)
	}
	return fmt.Sprintf("%d sessions at most", most), nil
}

// deadlines: a caller whose time is up is told so at once, and harms nobody.
func (r *run) deadlines(ctx context.Context) (string, error) {
	for micros := range 50 {
		short, cancel := context.WithTimeout(ctx, time.Duration(micros*20)*time.Microsecond)
		begin := time.Now()
		err := envelope.Prove(short, r.in.Set, r.common.Profile, r.id)
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return "", fmt.Errorf("a deadline of %d us: %w", micros*20, err)
		}
		if took := time.Since(begin); took > r.token.CallTimeout {
			return "", fmt.Errorf("a deadline of %d us was answered after %s", micros*20, took)
		}
	}
	return "", envelope.Prove(ctx, r.in.Set, r.common.Profile, r.id)
}

// liveRing: a key that another process makes is served without a restart, by the next reading of the ring or, where the
// module reads its keys once, by the process that takes this one's place.
func (r *run) liveRing(ctx context.Context) (string, error) {
	before := r.id
	added, err := r.makeKey(ctx, time.Now().Add(-time.Second))
	if err != nil {
		return "", err
	}
	if err := r.in.Ring.Refresh(ctx); err != nil {
		return "", err
	}
	shown := "at the next reading"
	if !r.shows(added) {
		shown = "by a new process of the module alone: it reads its keys once"
		r.disconnect()
		if err := r.connect(ctx); err != nil {
			return "", err
		}
		if !r.shows(added) {
			return "", fmt.Errorf("the key %s is not shown", added)
		}
	}
	if err := r.current(ctx); err != nil {
		return "", err
	}
	if r.id.Version != string(added) {
		return "", fmt.Errorf("current is %s, the key added is %s", r.id, added)
	}
	return shown, errors.Join(envelope.Prove(ctx, r.in.Set, r.common.Profile, before), envelope.Prove(ctx, r.in.Set, r.common.Profile, r.id))
}

// shows reports whether the ring has the key with that CKA_ID.
func (r *run) shows(ckaID []byte) bool {
	return slices.ContainsFunc(r.in.Ring.Advance().Versions, func(v envelope.Version) bool { return string(v.CKAID) == string(ckaID) })
}

// reconnect: another process of the module shows the same keys, and opens what this one sealed.
func (r *run) reconnect(ctx context.Context) (string, error) {
	before, err := r.texts(ctx)
	if err != nil {
		return "", err
	}
	id := r.id
	wrapped, err := r.in.Ring.Seal(ctx, id, []byte("a DEK"))
	if err != nil {
		return "", err
	}
	r.disconnect()
	if err := r.connect(ctx); err != nil {
		return "", err
	}
	after, err := r.texts(ctx)
	if err == nil && !slices.Equal(before, after) {
		err = fmt.Errorf("%q, and then %q", before, after)
	}
	if err != nil {
		return "", err
	}
	dek, err := r.in.Ring.Open(ctx, id.String(), wrapped)
	if err == nil && string(dek) != "a DEK" {
		err = errors.New("what was sealed came back changed")
	}
	return "", err
}
