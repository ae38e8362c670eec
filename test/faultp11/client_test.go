package faultp11_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// client is a PKCS#11 application of the plainest kind, on one token through one module file.
type client struct {
	*pkcs11.Ctx
	slot    uint
	session pkcs11.SessionHandle
	key     pkcs11.ObjectHandle
}

// newModule gives a faulty module in front of SoftHSM with a token of its own, and the token's PIN.
func newModule(t *testing.T, o faultp11.Options) (*faultp11.Module, string) {
	t.Helper()
	token := softhsm.ForTest(t, "faulty")
	pin, err := token.PIN()
	if err != nil {
		t.Fatal(err)
	}
	o.SoftHSMConf = token.Conf()
	return faultp11.New(t, token.Module, o), pin
}

// load loads and initialises the module, and finalises it at the end of the test.
func load(t *testing.T, path string) *pkcs11.Ctx {
	t.Helper()
	ctx := pkcs11.New(path)
	if ctx == nil {
		t.Fatalf("cannot load %s", path)
	}
	if err := ctx.Initialize(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ctx.Finalize() })
	return ctx
}

// connect loads the module, opens a session, logs in and makes a key.
func connect(t *testing.T, path, pin string) *client {
	t.Helper()
	c := &client{Ctx: load(t, path)}
	c.slot = c.onlySlot(t)
	c.session = c.open(t)
	if err := c.Login(c.session, pkcs11.CKU_USER, pin); err != nil {
		t.Fatal(err)
	}
	c.key = c.generate(t, "key")
	return c
}

// onlySlot gives the slot of the one initialised token.
func (c *client) onlySlot(t *testing.T) uint {
	t.Helper()
	slots, err := c.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range slots {
		if info, err := c.GetTokenInfo(s); err == nil && info.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0 {
			return s
		}
	}
	t.Fatalf("no initialised token in slots %v", slots)
	return 0
}

func (c *client) open(t *testing.T) pkcs11.SessionHandle {
	t.Helper()
	s, err := c.OpenSession(c.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (c *client) generate(t *testing.T, label string) pkcs11.ObjectHandle {
	t.Helper()
	key, err := c.GenerateKey(c.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)},
		[]*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_LABEL, label), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32),
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
			pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
		})
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// mechanism is AES-GCM with a fixed nonce: what is under test here is the module, not secrecy.
func mechanism() ([]*pkcs11.Mechanism, *pkcs11.GCMParams) {
	p := pkcs11.NewGCMParams(bytes.Repeat([]byte{7}, 12), []byte("aad"), 128)
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, p)}, p
}

// seal encrypts in session s: C_EncryptInit, then C_Encrypt twice (length, data).
func (c *client) seal(s pkcs11.SessionHandle, plaintext []byte) ([]byte, error) {
	m, p := mechanism()
	defer p.Free()
	if err := c.EncryptInit(s, m, c.key); err != nil {
		return nil, err
	}
	return c.Encrypt(s, plaintext)
}

// unseal is the inverse of seal: C_DecryptInit, then C_Decrypt twice.
func (c *client) unseal(s pkcs11.SessionHandle, ciphertext []byte) ([]byte, error) {
	m, p := mechanism()
	defer p.Free()
	if err := c.DecryptInit(s, m, c.key); err != nil {
		return nil, err
	}
	return c.Decrypt(s, ciphertext)
}

// roundTrip proves that the token works in session s.
func (c *client) roundTrip(t *testing.T, s pkcs11.SessionHandle) {
	t.Helper()
	want := []byte("0123456789abcdef0123456789abcdef")
	sealed, err := c.seal(s, want)
	if err != nil {
		t.Fatalf("sealing: %v", err)
	}
	got, err := c.unseal(s, sealed)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("opening: got %q, %v", got, err)
	}
}

// wantCode fails unless err is this PKCS#11 return code.
func wantCode(t *testing.T, err error, want uint) {
	t.Helper()
	if got, ok := errors.AsType[pkcs11.Error](err); !ok || uint(got) != want {
		t.Fatalf("got %v, want %v", err, pkcs11.Error(want))
	}
}

func wantCount(t *testing.T, what string, got, want int) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %d, want %d", what, got, want)
	}
}
