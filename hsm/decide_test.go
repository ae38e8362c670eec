package hsm

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// errorOf is an error of an operation with that return value.
func errorOf(rv p11.RV) error { return &p11.Error{Function: "C_Encrypt", RV: rv} }

// The table of decide.go: what an operation does about an error.
func TestNextStep(t *testing.T) {
	t.Parallel()
	always := []p11.RV{
		pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_OPERATION_NOT_INITIALIZED,
		pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_GENERAL_ERROR,
		pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_PIN_EXPIRED, 0x8000001A,
	}
	for _, rv := range always {
		class := classOf(errorOf(rv))
		for i, want := range []step{retryFresh, checkFirst, giveUp} {
			if got := nextStep(class, i > 0, i > 1); got != want {
				t.Errorf("%s, step %d: %d, want %d", rv, i, got, want)
			}
		}
	}
	for _, rv := range goneCodes {
		class := classOf(errorOf(rv))
		if first, second := nextStep(class, false, false), nextStep(class, false, true); first != checkFirst || second != giveUp {
			t.Errorf("%s: %d, then %d", rv, first, second)
		}
		if mayBeLimit(errorOf(rv)) {
			t.Errorf("%s is taken for a limit of sessions", rv)
		}
	}
	if err := fmt.Errorf("making the pipes of a session: %w", os.NewSyscallError("pipe2", unix.EMFILE)); !mayBeLimit(err) {
		t.Errorf("%v: is taken for no limit of sessions", err)
	}
}

// goneCodes are never a limit and never a matter of one session.
var goneCodes = []p11.RV{
	pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_SLOT_ID_INVALID,
}

// fakeToken is a token in memory: keys by handle, of profile hmac-kdf, and what fails.
type fakeToken struct {
	p11.API  // nil: only the methods below are called
	keys     map[p11.Object]string
	bad      map[p11.Object]p11.RV // use of the key fails
	all      p11.RV                // every use of a key fails
	open     p11.RV                // C_OpenSession fails
	info     p11.RV                // C_GetSessionInfo fails
	mute     p11.Object            // it does not say what it is
	out      bool                  // nobody is logged in
	sessions int
	asked    int // uses of keys
}

func fails(function string, rv p11.RV) error {
	if rv == 0 {
		return nil
	}
	return &p11.Error{Function: function, RV: rv}
}

func (f *fakeToken) OpenSession(uint, bool) (p11.Session, error) {
	if f.open == 0 {
		f.sessions++
	}
	return p11.Session(f.sessions), fails("C_OpenSession", f.open)
}

func (f *fakeToken) CloseSession(p11.Session) error { return nil }

func (f *fakeToken) SessionInfo(p11.Session) (pkcs11.SessionInfo, error) {
	info := pkcs11.SessionInfo{State: pkcs11.CKS_RO_USER_FUNCTIONS}
	if f.out {
		info.State = pkcs11.CKS_RO_PUBLIC_SESSION
	}
	return info, fails("C_GetSessionInfo", f.info)
}

func (f *fakeToken) FindSecretKeys(p11.Session, string, int) (found []p11.Object, err error) {
	for handle := range f.keys {
		found = append(found, handle)
	}
	slices.Sort(found)
	return found, nil
}

func (f *fakeToken) Attribute(_ p11.Session, o p11.Object, _ uint) ([]byte, error) {
	if o == f.mute {
		return nil, fails("C_GetAttributeValue", pkcs11.CKR_DEVICE_ERROR)
	}
	return []byte(f.keys[o]), nil
}

func (f *fakeToken) HMAC(_ time.Time, _ p11.Session, key p11.Object, _ []byte) ([]byte, error) {
	f.asked++
	if err := fails("C_Sign", max(f.bad[key], f.all)); err != nil {
		return nil, err
	}
	return proofOf(f.keys[key]), nil
}

func proofOf(name string) []byte { return append(make([]byte, envelope.MACSize-len(name)), name...) }

// ringOf is the ring as it was read when key i had handle i.
func ringOf(names ...string) *table {
	t := &table{byID: map[envelope.KeyID]*heldKey{}, byHandle: map[p11.Object]*heldKey{}}
	for i, name := range names {
		held := &heldKey{
			handle: p11.Object(i + 1), proof: proofOf(name),
			key: envelope.Key{ID: envelope.KeyID{Ring: "ring", Version: name}, CKAID: []byte(name), Activation: time.Unix(int64(i), 0)},
		}
		t.byID[held.key.ID], t.byHandle[held.handle], t.keys = held, held, append(t.keys, held.key)
	}
	return t
}

// The rest of the table: what is done about an error of a class when the check finds that.
func TestDecisions(t *testing.T) {
	t.Parallel()
	three := map[p11.Object]string{1: "a", 2: "b", 3: "c"}
	for name, c := range map[string]struct {
		ring  []string
		token fakeToken
		key   string // that is suspected
		avoid string
		codes []p11.RV // of the error; nil: KeyErrors
		want  reaction
		found verdict
		at    p11.Object
	}{
		"not logged in":                           {ring: []string{"a", "b"}, token: fakeToken{keys: three, out: true}, key: "a", want: connectAgain, found: loggedOut},
		"session info fails":                      {ring: []string{"a", "b"}, token: fakeToken{keys: three, info: 0x30}, key: "a", want: connectAgain, found: nothingWorks},
		"K works":                                 {ring: []string{"a", "b"}, token: fakeToken{keys: three}, key: "a", codes: []p11.RV{0x60, 0x82, 0x101, 0x05}, want: goOn, found: keyWorks, at: 1},
		"K works after all is gone":               {ring: []string{"a", "b"}, token: fakeToken{keys: three}, key: "a", codes: goneCodes, want: connectAgain, found: keyWorks, at: 1},
		"K has another handle":                    {ring: []string{"a", "b"}, token: fakeToken{keys: map[p11.Object]string{7: "b", 9: "a"}}, key: "a", codes: []p11.RV{0x60, 0x82}, want: goOn, found: keyWorks, at: 9},
		"its number names another":                {ring: []string{"a", "b"}, token: fakeToken{keys: map[p11.Object]string{1: "b", 2: "a"}}, key: "a", codes: []p11.RV{0x60}, want: goOn, found: keyWorks, at: 2},
		"K fails, another works":                  {ring: []string{"a", "b"}, token: fakeToken{keys: three, bad: map[p11.Object]p11.RV{1: 0x60}}, key: "a", want: suspendKey, found: keyFails},
		"K fails with gone":                       {ring: []string{"a", "b"}, token: fakeToken{keys: three, bad: map[p11.Object]p11.RV{1: 0xE0}}, key: "a", want: suspendKey, found: keyFails},
		"the newest fails":                        {ring: []string{"a", "b", "c"}, token: fakeToken{keys: three, bad: map[p11.Object]p11.RV{3: 0x05}}, key: "c", want: suspendKey, found: keyFails},
		"K and the newest fail":                   {ring: []string{"a", "b", "c"}, token: fakeToken{keys: three, bad: map[p11.Object]p11.RV{1: 0x82, 3: 0x82}}, key: "a", want: suspendKey, found: keyFails},
		"K is not found":                          {ring: []string{"a", "b"}, token: fakeToken{keys: map[p11.Object]string{2: "b"}}, key: "a", want: seekKey, found: keyMissing},
		"no key passes":                           {ring: []string{"a", "b"}, token: fakeToken{keys: three, all: 0x30}, key: "a", want: connectAgain, found: nothingWorks},
		"no key is found":                         {ring: []string{"a"}, token: fakeToken{}, key: "a", want: connectAgain, found: nothingWorks},
		"the only key works":                      {ring: []string{"a"}, token: fakeToken{keys: three}, key: "a", codes: []p11.RV{0x60, 0x05}, want: goOn, found: keyWorks, at: 1},
		"the only key fails":                      {ring: []string{"a"}, token: fakeToken{keys: three, bad: map[p11.Object]p11.RV{1: 0x60}}, key: "a", want: connectAgain, found: nothingWorks},
		"the others are suspended":                {ring: []string{"a", "b"}, token: fakeToken{keys: three, bad: map[p11.Object]p11.RV{1: 0x60}}, key: "a", avoid: "b", want: connectAgain, found: nothingWorks},
		"no other session":                        {ring: []string{"a", "b"}, token: fakeToken{keys: three, bad: map[p11.Object]p11.RV{1: 0x60}, open: 0x30}, key: "a", want: connectAgain, found: nothingWorks},
		"the connection, all well":                {ring: []string{"a", "b"}, token: fakeToken{keys: three}, codes: []p11.RV{0x05}, want: goOn, found: keyWorks},
		"the connection, one fails":               {ring: []string{"a", "b"}, token: fakeToken{keys: three, bad: map[p11.Object]p11.RV{2: 0x05}}, codes: []p11.RV{0x05}, want: goOn, found: keyWorks},
		"the connection, no key":                  {ring: nil, token: fakeToken{}, codes: []p11.RV{0x05}, want: goOn, found: keyWorks},
		"the connection, and all are suspended":   {ring: []string{"a"}, token: fakeToken{keys: three}, avoid: "a", want: connectAgain, found: nothingWorks},
		"K may be what says nothing of itself":    {ring: []string{"a", "b"}, token: fakeToken{keys: map[p11.Object]string{2: "b", 9: "a"}, mute: 9}, key: "a", want: suspendKey, found: keyFails},
		"K is beside what says nothing of itself": {ring: []string{"a", "b"}, token: fakeToken{keys: map[p11.Object]string{2: "b", 8: "c", 9: "a"}, mute: 8}, key: "a", codes: []p11.RV{0x60, 0x82}, want: goOn, found: keyWorks, at: 9},
		"the connection, none works":              {ring: []string{"a", "b"}, token: fakeToken{keys: three, all: 0x05}, want: connectAgain, found: nothingWorks},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := &checker{
				api: &c.token, session: 100, ring: "ring", profile: envelope.HMACKDF, loggedIn: true, table: ringOf(c.ring...),
				avoid: func(id envelope.KeyID) bool { return id.Version == c.avoid },
			}
			id := envelope.KeyID{}
			if c.key != "" {
				id = envelope.KeyID{Ring: "ring", Version: c.key}
			}
			found := k.check(id)
			if (found.err == nil) != (found.verdict == keyWorks) {
				t.Errorf("found %d, and why: %v", found.verdict, found.err)
			}
			if found.verdict != c.found || found.handle != c.at {
				t.Errorf("found %d at %d (%v), want %d at %d", found.verdict, found.handle, found.err, c.found, c.at)
			}
			codes := c.codes
			if codes == nil {
				codes = KeyErrors
			}
			for _, rv := range codes {
				if got := react(classOf(errorOf(rv)), found.verdict); got != c.want {
					t.Errorf("after %s: %d, want %d", rv, got, c.want)
				}
			}
			if c.token.asked > 1+triedKeys {
				t.Errorf("the check used %d keys", c.token.asked)
			}
		})
	}
}

// A call that hangs says nothing.
func TestCheckThatHangs(t *testing.T) {
	t.Parallel()
	c := &checker{}
	if found := c.failed(&p11.Overdue{Function: "C_Sign"}); found.verdict != undecided {
		t.Errorf("%+v", found)
	}
	if found := c.failed(errors.Join(p11.ErrEnded, errors.New("signal"))); found.verdict != nothingWorks {
		t.Errorf("%+v", found)
	}
}

// One call in twenty of at least a hundred, and not fewer; one in a hundred is none.
func TestFailureRate(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ every, calls, trips int }{{100, 1000, 0}, {20, 99, 0}, {20, 100, 1}, {20, 1000, 10}, {1, 99, 0}, {1, 100, 1}, {25, 1000, 0}} {
		f, trips := failureRate{}, 0
		for i := range c.calls {
			if f.note((i+1)%c.every == 0) != "" {
				trips++
			}
		}
		if trips != c.trips {
			t.Errorf("one in %d of %d calls fails: %d times, want %d", c.every, c.calls, trips, c.trips)
		}
	}
	f := failureRate{began: time.Now().Add(-rateWindow), calls: 1000, failed: 49}
	if why := f.note(true); why != "" {
		t.Errorf("calls of an earlier window count: %s", why)
	}
}
