package faultp11_test

import (
	"bytes"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/test/faultp11"
)

// A module that makes the nonce tells it in one of the two ways, and refuses one of its caller.
func TestMakeIVs(t *testing.T) {
	t.Parallel()
	m, pin := newModule(t, faultp11.Options{})
	c := connect(t, m.Path(), pin)
	seal := func(ivSize int) (iv, sealed []byte) {
		t.Helper()
		p := pkcs11.NewGCMParams(make([]byte, ivSize), []byte("aad"), 128)
		defer p.Free()
		if err := c.EncryptInit(c.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, p)}, c.key); err != nil {
			t.Fatal(err)
		}
		sealed, err := c.Encrypt(c.session, []byte("plaintext"))
		if err != nil {
			t.Fatal(err)
		}
		return p.IV(), sealed
	}
	opens := func(iv, sealed []byte) {
		t.Helper()
		p := pkcs11.NewGCMParams(iv, []byte("aad"), 128)
		defer p.Free()
		if err := c.DecryptInit(c.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, p)}, c.key); err != nil {
			t.Fatal(err)
		}
		if out, err := c.Decrypt(c.session, sealed); err != nil || string(out) != "plaintext" {
			t.Errorf("opening: %q, %v", out, err)
		}
	}
	m.MakeIVs(faultp11.WrittenBack)
	first, sealed := seal(12)
	opens(first, sealed)
	if second, _ := seal(12); bytes.Equal(first, second) || len(first) != 12 {
		t.Errorf("%x and %x", first, second)
	}
	for from, want := range map[faultp11.IVSource][]byte{
		faultp11.ZeroIVs: make([]byte, 12), faultp11.ConstantIVs: bytes.Repeat([]byte{0xC0}, 12),
		faultp11.CountedIVs: append(make([]byte, 11), 1), faultp11.ReservedIVs: []byte("hsm-kms/fp/1"),
	} {
		m.DrawIVs(from, 1)
		if iv, _ := seal(12); !bytes.Equal(iv, want) {
			t.Errorf("source %d: %x", from, iv)
		}
	}
	m.MakeIVs(faultp11.Appended)
	_, sealed = seal(16)
	if len(sealed) != len("plaintext")+32 {
		t.Fatalf("%d bytes", len(sealed))
	}
	opens(sealed[len(sealed)-16:], sealed[:len(sealed)-16])
	_, err := c.seal(c.session, []byte("x"))
	wantCode(t, err, pkcs11.CKR_MECHANISM_PARAM_INVALID)
}
