package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// ringView is the ring as a session of its own shows it, read from scratch, with every fingerprint.
type ringView struct {
	gen   *generation
	table *table
}

// viewRing reads the ring on a new session, whatever the admin session is stuck in. A worker that was replaced, or died,
// meanwhile says nothing of the ring: it is read once more then, through its successor.
func (t *Token) viewRing(ctx context.Context) (*ringView, error) {
	seen, err := t.viewOnce(ctx)
	if errors.Is(err, errStale) || errors.Is(err, p11.ErrEnded) {
		return t.viewOnce(ctx)
	}
	return seen, err
}

func (t *Token) viewOnce(ctx context.Context) (*ringView, error) {
	result := make(chan *ringView, 1)
	err := t.onOwnSession(ctx, "looking at the ring", false, func(api p11.API, gen *generation, s *p11.Session) error {
		reader := t.reader(api, gen.slot, *s)
		done := t.lendSessions(ctx, reader, gen)
		seen, err := t.viewOn(reader, gen)
		done(err)
		*s = reader.session
		result <- seen
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-result, nil
}

// onOwnSession runs f on a new session of the present connection, which it closes: f may replace it.
func (t *Token) onOwnSession(ctx context.Context, what string, readWrite bool, f func(api p11.API, gen *generation, s *p11.Session) error) error {
	t.mu.Lock()
	gen := t.gen
	t.mu.Unlock()
	if gen == nil || hasEnded(gen.worker) {
		var err error
		if gen, err = t.ready(ctx); err != nil {
			return err
		}
	}
	err := t.sequence(ctx, what, gen, func(api p11.API) error {
		if idle, ok := gen.takeIdle(); ok {
			t.discard(gen, idle) // the new one takes its place
		}
		s, err := api.OpenSession(gen.slot, readWrite)
		if err != nil {
			return fmt.Errorf("opening session: %w", err)
		}
		err = f(api, gen, &s)
		if closeSession(api, s) != nil {
			t.requireNewWorker()
		}
		return err
	})
	if err != nil && !ranOutOfTime(err) && !errors.Is(err, errStale) {
		t.condemned(gen, err)
	}
	return err
}

// viewOn reads the ring by a reader.
func (t *Token) viewOn(reader *keyReader, gen *generation) (*ringView, error) {
	table, err := reader.read(nil)
	if reader.leftOpen {
		t.requireNewWorker()
	}
	if err != nil {
		return nil, err
	}
	return &ringView{gen: gen, table: table}, stillLoggedIn(reader.api, reader.session, gen)
}

// stillLoggedIn is asked after a reading: without the login a token shows no private object, and no error.
func stillLoggedIn(api p11.API, s p11.Session, gen *generation) error {
	in, err := isLoggedIn(api, s)
	if err == nil && gen.loggedIn && !in {
		err = errors.New("the login is lost, and without it private objects are not seen")
	}
	return err
}

// unread counts the objects with the key's CKA_ID that are not served and have no fingerprint: each may be the key.
func (s *ringView) unread(id envelope.KeyID) (n int) {
	for _, key := range s.table.keys {
		if key.Refused != "" && (key.ID.Version == id.Version || key.CKAID == nil) && key.ID.Fingerprint == [envelope.FingerprintSize]byte{} {
			n++
		}
	}
	return n
}

// continues returns an error if what the token shows now cannot be compared with what it showed before: what is missing
// may then be there. version is the key that the act was about.
func (s *ringView) continues(before *ringView, version string) error {
	others := 0
	for _, was := range before.table.keys {
		if was.ID.Version == version {
			continue
		}
		others++
		if s.find(was.CKAID) != nil {
			return nil
		}
	}
	if others > 0 {
		return errVanished
	}
	return nil
}

// find returns the key with that CKA_ID, served or not; nil: there is none.
func (s *ringView) find(ckaID []byte) *envelope.Key {
	i := slices.IndexFunc(s.table.keys, func(k envelope.Key) bool { return bytes.Equal(k.CKAID, ckaID) })
	if i < 0 {
		return nil
	}
	return &s.table.keys[i]
}
