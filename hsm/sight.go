package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// settleCalls bounds the time in which it must become clear what an act has come to, in callTimeouts.
const settleCalls = 5

// sight is the ring as a session of its own shows it, read from scratch, with every fingerprint.
type sight struct {
	gen      *generation
	table    *table
	loggedIn bool // afterwards: without the login a ring looks empty
}

// look reads the ring on a new session, whatever the control session is stuck in.
func (t *Token) look(ctx context.Context) (*sight, error) {
	t.mu.Lock()
	gen := t.gen
	t.mu.Unlock()
	if gen == nil {
		var err error
		if gen, err = t.ready(ctx); err != nil {
			return nil, err
		}
	}
	result := make(chan *sight, 1)
	err := t.sequence(ctx, "looking at the ring", func() {}, func(api p11.API, _ *call) error {
		if gen.ended() {
			return errStale
		}
		seen, err := t.lookOn(api, gen)
		if err == nil {
			result <- seen
		}
		return err
	})
	switch {
	case err == nil:
		return <-result, nil
	case !isAway(err) && !errors.Is(err, errStale):
		t.suspected(gen, max(faultOf(err), faultLogin), err)
	}
	return nil, err
}

func (t *Token) lookOn(api p11.API, gen *generation) (*sight, error) {
	if idle, ok := gen.takeIdle(); ok {
		t.discard(gen, idle) // the new one takes its place
	}
	s, err := api.OpenSession(gen.slot, false)
	if err != nil {
		return nil, fmt.Errorf("opening session: %w", err)
	}
	reader := t.reader(api, gen.slot, s)
	table, err := reader.read(nil)
	seen := &sight{gen: gen, table: table}
	if err == nil {
		seen.loggedIn, err = isLoggedIn(api, reader.session)
	}
	if closeErr := closeSession(api, reader.session); closeErr != nil || reader.unclean {
		t.noteUnclean()
	}
	return seen, err
}

// unread counts the objects with the key's CKA_ID that are not served and have no fingerprint: each may be the key.
func (s *sight) unread(id envelope.KeyID) (n int) {
	for _, key := range s.table.keys {
		if key.Refused != "" && key.ID.Version == id.Version && key.ID.Fingerprint == [envelope.FingerprintSize]byte{} {
			n++
		}
	}
	return n
}

// continues returns an error if what the token shows now cannot be compared with what it showed before: a key that is
// missing may then be there.
func (s *sight) continues(before *sight, id envelope.KeyID) error {
	if s.unread(id) > before.unread(id) {
		return fmt.Errorf("an object with the CKA_ID of %s cannot be used, and may be that key", id)
	}
	if before.loggedIn && !s.loggedIn {
		return errors.New("the login is lost")
	}
	others := 0
	for _, was := range before.table.keys {
		if was.ID.Version == id.Version {
			continue
		}
		others++
		for _, is := range s.table.keys {
			if bytes.Equal(was.CKAID, is.CKAID) {
				return nil
			}
		}
	}
	if others > 0 {
		return errVanished
	}
	return nil
}
