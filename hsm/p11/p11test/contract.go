// Package p11test is what every implementation of p11.API must do. One suite runs over the library in process, the
// client of a worker, and any fake, so that what is tested on one holds for the others. It depends on p11
// and pinfile.
package p11test

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
)

// Subject is an implementation before C_Initialize, on a token that has one AES key of 256 bits with this label and CKA_ID.
type Subject struct {
	API       p11.API
	PINFile   string
	TokenName string // label
	Label     string // of the key
	CKAID     []byte
}

// Run holds the subject against the contract. Its parts build on each other.
func Run(t *testing.T, s Subject) {
	t.Helper()
	c := &contract{Subject: s, t: t}
	c.beforeInitialize()
	c.initialize()
	c.findSlot()
	c.login()
	c.findKey()
	c.operations()
	c.ownIV()
	c.ecb()
	c.refusals()
	c.sizes()
	c.sessions()
}

type contract struct {
	Subject
	t       *testing.T
	slot    uint
	session p11.Session
	key     p11.Object
}

func (c *contract) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// is wants an error of this function with this value.
func (c *contract) is(err error, function string, rv p11.RV) {
	c.t.Helper()
	e, ok := errors.AsType[*p11.Error](err)
	if !ok || e.Function != function || e.RV != rv {
		c.t.Errorf("got %v, want %s: %s", err, function, rv)
	}
}

func (c *contract) beforeInitialize() {
	_, err := c.API.Slots()
	c.is(err, "C_GetSlotList", pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED)
}

func (c *contract) initialize() {
	c.must(c.API.Initialize())
	c.is(c.API.Initialize(), "C_Initialize", pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)
}

func (c *contract) findSlot() {
	slots, err := c.API.Slots()
	c.must(err)
	found := false
	for _, slot := range slots {
		info, err := c.API.TokenInfo(slot)
		c.must(err)
		if info.Label == c.TokenName {
			c.slot, found = slot, true
			if info.Flags&pkcs11.CKF_LOGIN_REQUIRED == 0 || info.SerialNumber == "" {
				c.t.Errorf("token info: %+v", info)
			}
		}
	}
	if !found {
		c.t.Fatalf("no token %q in slots %v", c.TokenName, slots)
	}
	mechanism, err := c.API.Mechanism(c.slot, pkcs11.CKM_AES_GCM)
	c.must(err)
	if mechanism.Flags&pkcs11.CKF_ENCRYPT == 0 || mechanism.MaxKeySize == 0 {
		c.t.Errorf("mechanism info: %+v", mechanism)
	}
	_, err = c.API.TokenInfo(1 << 20)
	c.is(err, "C_GetTokenInfo", pkcs11.CKR_SLOT_ID_INVALID)
	_, err = c.API.OpenSession(1<<20, false)
	c.is(err, "C_OpenSession", pkcs11.CKR_SLOT_ID_INVALID)
}

func (c *contract) login() {
	var err error
	c.session, err = c.API.OpenSession(c.slot, false)
	c.must(err)
	before, err := c.API.SessionInfo(c.session)
	c.must(err)
	file, err := pinfile.Stat(c.PINFile, pinfile.Rules{})
	c.must(err)
	other := file
	other.Ctime++
	if err := c.API.Login(c.session, other); !errors.Is(err, pinfile.ErrChanging) {
		c.t.Errorf("logging in with a file that is in another state: %v", err)
	}
	absent := file
	absent.Path += ".absent"
	if err := c.API.Login(c.session, absent); !errors.Is(err, pinfile.ErrAbsent) {
		c.t.Errorf("logging in with a file that is not there: %v", err)
	}
	c.must(c.API.Login(c.session, file))
	c.is(c.API.Login(c.session, file), "C_Login", pkcs11.CKR_USER_ALREADY_LOGGED_IN)
	after, err := c.API.SessionInfo(c.session)
	c.must(err)
	if before.State != pkcs11.CKS_RO_PUBLIC_SESSION || after.State != pkcs11.CKS_RO_USER_FUNCTIONS {
		c.t.Errorf("session state %d before the login, %d after it", before.State, after.State)
	}
}

func (c *contract) findKey() {
	found, err := c.API.FindSecretKeys(c.session, c.Label, 10)
	c.must(err)
	if len(found) != 1 {
		c.t.Fatalf("found %d keys", len(found))
	}
	c.key = found[0]
	none, err := c.API.FindSecretKeys(c.session, c.Label+"x", 10)
	if err != nil || len(none) != 0 {
		c.t.Errorf("a label that no key has: %v, %v", none, err)
	}
	id, err := c.API.Attribute(c.session, c.key, pkcs11.CKA_ID)
	if err != nil || !bytes.Equal(id, c.CKAID) {
		c.t.Errorf("CKA_ID %x, %v", id, err)
	}
	values, err := c.API.Attributes(c.session, c.key, []uint{pkcs11.CKA_SENSITIVE, pkcs11.CKA_ID})
	if err != nil || !bytes.Equal(values[pkcs11.CKA_SENSITIVE], []byte{1}) || !bytes.Equal(values[pkcs11.CKA_ID], c.CKAID) {
		c.t.Errorf("two attributes: %v, %v", values, err)
	}
	_, err = c.API.Attribute(c.session, c.key, pkcs11.CKA_VALUE)
	c.is(err, "C_GetAttributeValue", pkcs11.CKR_ATTRIBUTE_SENSITIVE)
}

// The arguments of an operation.
var (
	nonce      = []byte("twelve bytes")
	associated = []byte("associated data")
	plaintext  = []byte("a data-encryption key")
)

func (c *contract) operations() {
	for size := 1; size <= p11.MaxIn; size = size*3 + 1 {
		in := bytes.Repeat([]byte{0xA5}, size)
		kept := slices.Clone(in)
		sealed, err := c.API.EncryptGCM(time.Time{}, c.session, c.key, nonce, associated, in)
		c.must(err)
		if len(sealed) != size+16 || !bytes.Equal(in, kept) {
			c.t.Errorf("%d bytes sealed to %d", size, len(sealed))
		}
		opened, err := c.API.DecryptGCM(time.Now().Add(time.Minute), c.session, c.key, nonce, associated, sealed)
		if err != nil || !bytes.Equal(opened, kept) {
			c.t.Errorf("%d bytes: opened %x, %v", size, opened, err)
		}
	}
}

// ownIV: what the module leaves where the IV was comes back, and the output is that of EncryptGCM. SoftHSM makes no IV, and
// leaves what it was given: a test of the fault module has the rest.
func (c *contract) ownIV() {
	iv := slices.Clone(nonce)
	sealed, err := c.API.EncryptGCMOwnIV(time.Now().Add(time.Minute), c.session, c.key, iv, associated, plaintext)
	c.must(err)
	opened, err := c.API.DecryptGCM(time.Time{}, c.session, c.key, iv, associated, sealed)
	if err != nil || !bytes.Equal(opened, plaintext) || !bytes.Equal(iv, nonce) {
		c.t.Errorf("IV %x, opened %x, %v", iv, opened, err)
	}
	_, err = c.API.EncryptGCMOwnIV(time.Time{}, c.session, c.key, make([]byte, p11.MaxOwnIV+1), associated, plaintext)
	c.is(err, "C_EncryptInit", pkcs11.CKR_DATA_LEN_RANGE)
	_, err = c.API.EncryptGCMOwnIV(time.Time{}, c.session, c.key, nil, associated, plaintext)
	c.is(err, "C_EncryptInit", pkcs11.CKR_ARGUMENTS_BAD)
}

// ecb: block by block, each by itself.
func (c *contract) ecb() {
	block := []byte("sixteen bytes...")
	two, err := c.API.EncryptECB(time.Time{}, c.session, c.key, append(block[:16:16], block...))
	if err != nil || len(two) != 32 || !bytes.Equal(two[:16], two[16:]) || bytes.Contains(two, block) {
		c.t.Errorf("AES-ECB: %x, %v", two, err)
	}
	_, err = c.API.EncryptECB(time.Time{}, c.session, c.key, nil)
	c.is(err, "C_EncryptInit", pkcs11.CKR_ARGUMENTS_BAD)
	_, err = c.API.EncryptECB(time.Time{}, c.session, c.key, make([]byte, p11.MaxIn+1))
	c.is(err, "C_EncryptInit", pkcs11.CKR_DATA_LEN_RANGE)
}

// refusals are answers of the module, after which the session is replaced as package hsm does.
func (c *contract) refusals() {
	sealed, err := c.API.EncryptGCM(time.Time{}, c.session, c.key, nonce, associated, plaintext)
	c.must(err)
	sealed[0] ^= 1
	s, err := c.API.OpenSession(c.slot, false)
	c.must(err)
	out, err := c.API.DecryptGCM(time.Time{}, s, c.key, nonce, associated, sealed)
	if e, ok := errors.AsType[*p11.Error](err); !ok || e.Function != "C_Decrypt" || out != nil {
		c.t.Errorf("a changed ciphertext: %x, %v", out, err)
	}
	c.must(c.API.CloseSession(s))
	s, err = c.API.OpenSession(c.slot, true)
	c.must(err)
	_, err = c.API.EncryptGCM(time.Time{}, s, 1<<20, nonce, associated, plaintext)
	if e, ok := errors.AsType[*p11.Error](err); !ok || e.Function != "C_EncryptInit" {
		c.t.Errorf("a key that is not there: %v", err)
	}
	_, err = c.API.HMAC(time.Time{}, s, c.key, plaintext)
	if e, ok := errors.AsType[*p11.Error](err); !ok || e.Function != "C_SignInit" {
		c.t.Errorf("HMAC with a key for AES: %v", err)
	}
	c.must(c.API.CloseSession(s))
}

func (c *contract) sizes() {
	long := make([]byte, p11.MaxIn+1)
	for _, bad := range []struct {
		rv                    p11.RV
		nonce, associated, in []byte
	}{
		{pkcs11.CKR_ARGUMENTS_BAD, nil, associated, plaintext},
		{pkcs11.CKR_ARGUMENTS_BAD, nonce, nil, plaintext},
		{pkcs11.CKR_ARGUMENTS_BAD, nonce, associated, nil},
		{pkcs11.CKR_DATA_LEN_RANGE, long[:p11.MaxNonce+1], associated, plaintext},
		{pkcs11.CKR_DATA_LEN_RANGE, nonce, long[:p11.MaxAssociated+1], plaintext},
		{pkcs11.CKR_DATA_LEN_RANGE, nonce, associated, long},
	} {
		_, err := c.API.EncryptGCM(time.Time{}, c.session, c.key, bad.nonce, bad.associated, bad.in)
		c.is(err, "C_EncryptInit", bad.rv)
		_, err = c.API.DecryptGCM(time.Time{}, c.session, c.key, bad.nonce, bad.associated, bad.in)
		c.is(err, "C_DecryptInit", bad.rv)
	}
	_, err := c.API.HMAC(time.Time{}, c.session, c.key, long)
	c.is(err, "C_SignInit", pkcs11.CKR_DATA_LEN_RANGE)
	most := long[:p11.MaxIn]
	_, err = c.API.EncryptGCM(time.Time{}, c.session, c.key, nonce, long[:p11.MaxAssociated], most)
	c.must(err)
}

func (c *contract) sessions() {
	s, err := c.API.OpenSession(c.slot, false)
	c.must(err)
	c.must(c.API.CloseSession(s))
	c.is(c.API.CloseSession(s), "C_CloseSession", pkcs11.CKR_SESSION_HANDLE_INVALID)
	_, err = c.API.EncryptGCM(time.Time{}, s, c.key, nonce, associated, plaintext)
	c.is(err, "C_EncryptInit", pkcs11.CKR_SESSION_HANDLE_INVALID)
	rw, err := c.API.OpenSession(c.slot, true)
	c.must(err)
	c.must(c.API.DestroyObject(rw, c.key))
	c.must(c.API.CloseSession(rw))
	found, err := c.API.FindSecretKeys(c.session, c.Label, 10)
	if err != nil || len(found) != 0 {
		c.t.Errorf("after the destruction: %v, %v", found, err)
	}
	c.must(c.API.CloseSession(c.session))
}
