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
	seen, err := t.see(reader, gen)
	if closeErr := closeSession(api, reader.session); closeErr != nil || reader.unclean {
		t.noteUnclean()
	}
	return seen, err
}

// see reads the ring by a reader.
func (t *Token) see(reader *keyReader, gen *generation) (*sight, error) {
	table, err := reader.read(nil)
	if err != nil {
		return nil, err
	}
	in, err := isLoggedIn(reader.api, reader.session)
	return &sight{gen: gen, table: table, loggedIn: in}, err
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

// continues returns an error if what the token shows now cannot be compared with what it showed before: what is missing
// may then be there. version is the key that the act was about.
func (s *sight) continues(before *sight, version string) error {
	if before.loggedIn && !s.loggedIn {
		return errors.New("the login is lost")
	}
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
func (s *sight) find(ckaID []byte) *envelope.Key {
	i := slices.IndexFunc(s.table.keys, func(k envelope.Key) bool { return bytes.Equal(k.CKAID, ckaID) })
	if i < 0 {
		return nil
	}
	return &s.table.keys[i]
}
