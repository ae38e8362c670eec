package hsm

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// checker finds out about one key of a connection, or about the connection as such. It works on a session that is surely
// new, and replaces it when something failed on it.
type checker struct {
	api      p11.API
	slot     uint
	session  p11.Session
	ring     string
	profile  envelope.Profile
	loggedIn bool // as the connection was made
	table    *table
	avoid    func(envelope.KeyID) bool // keys that prove nothing: suspended ones
}

// finding is a verdict, and what goes with it.
type finding struct {
	verdict verdict
	handle  p11.Object // of the key that works
	err     error      // what failed
}

var (
	errLoginLost  = errors.New("the login is lost, and without it private objects are not seen")
	errKeyMissing = errors.New("the token does not show the key")
	// errNothingToTry: of a connection that has keys none is left with which the token could show that it works.
	errNothingToTry = errors.New("the token cannot use any of its keys just now")
)

// check finds out about the key. A zero id, or one that the connection does not hold, stands for the connection.
func (c *checker) check(id envelope.KeyID) finding {
	if c.loggedIn {
		in, err := isLoggedIn(c.api, c.session)
		if err != nil {
			return c.failed(err)
		}
		if !in {
			return finding{verdict: loggedOut, err: errLoginLost}
		}
	}
	held := c.table.byID[id]
	var failed error
	if held != nil {
		handle, err := c.find(held)
		switch {
		case err == nil:
			return finding{verdict: keyWorks, handle: handle}
		case errors.Is(err, errKeyMissing):
			return finding{verdict: keyMissing, err: err}
		}
		failed = fmt.Errorf("using %s: %w", id, err)
	}
	return c.tryOthers(held, failed)
}

// tryOthers uses other keys than held until one works: what ails the token shows with each.
func (c *checker) tryOthers(held *heldKey, failed error) finding {
	others := c.table.newest(func(k *heldKey) bool { return k == held || c.avoid(k.key.ID) })
	if held == nil && len(others) == 0 && len(c.table.byID) == 0 {
		return finding{verdict: keyWorks} // an empty ring: there is nothing to try
	}
	if failed == nil && len(others) == 0 {
		failed = errNothingToTry
	}
	suspected := failed
	for _, other := range others {
		if ranOutOfTime(failed) || errors.Is(failed, p11.ErrEnded) {
			break
		}
		if failed != nil {
			if err := c.replace(); err != nil {
				return c.failed(errors.Join(failed, err))
			}
		}
		err := other.check(c.api, c.session, c.profile)
		switch {
		case err == nil && held == nil:
			return finding{verdict: keyWorks}
		case err == nil:
			return finding{verdict: keyFails, err: suspected}
		}
		failed = errors.Join(failed, fmt.Errorf("using %s: %w", other.key.ID, err))
	}
	return c.failed(failed)
}

func (c *checker) failed(err error) finding {
	if ranOutOfTime(err) {
		return finding{verdict: undecided, err: err}
	}
	return finding{verdict: nothingWorks, err: err}
}

// find looks for the key as if it were not known where it is, and uses it in every direction.
func (c *checker) find(held *heldKey) (p11.Object, error) {
	handles, err := c.api.FindSecretKeys(c.session, c.ring, maxRingKeys+1)
	if err != nil {
		return 0, fmt.Errorf("finding the keys of ring %s: %w", c.ring, err)
	}
	if len(handles) == 0 {
		return 0, errVanished // no matter of one key
	}
	if i := slices.Index(handles, held.handle); i > 0 { // most likely
		handles[0], handles[i] = handles[i], handles[0]
	}
	failed := errKeyMissing
	for _, handle := range handles {
		ckaID, err := c.api.Attribute(c.session, handle, pkcs11.CKA_ID)
		if err == nil && !bytes.Equal(ckaID, held.key.CKAID) {
			continue
		}
		if err == nil {
			candidate := *held
			candidate.handle = handle
			if err = candidate.check(c.api, c.session, c.profile); err == nil {
				return handle, nil
			}
		}
		if handle == held.handle || ranOutOfTime(err) || errors.Is(err, p11.ErrEnded) {
			return 0, err
		}
		failed = err
		if err := c.replace(); err != nil {
			return 0, errors.Join(failed, err)
		}
	}
	return 0, failed
}

// replace closes the session, on which something failed, and opens another. It takes no second one from the token.
func (c *checker) replace() error {
	err := closeSession(c.api, c.session)
	if err == nil {
		c.session, err = c.api.OpenSession(c.slot, false)
		if err != nil {
			c.session, err = 0, fmt.Errorf("opening session: %w", err)
		}
	}
	return err
}
