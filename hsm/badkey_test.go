package hsm_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11/p11test"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// A key of the ring that can only encrypt, as a vendor's template may leave it, is refused; it does not take the token
// with it, though it is the newest.
func TestKeyThatCannotDecryptIsRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	id, err := envelope.NewCKAID(time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	b.plant(id, false)
	b.start()
	refused := 0
	for _, v := range b.ring.Advance().Versions {
		if v.State == envelope.Refused {
			refused++
			if string(v.CKAID) != string(id) || !strings.Contains(v.Refused, "CKR_KEY_FUNCTION_NOT_PERMITTED") {
				t.Errorf("refused: %s, %s", v.CKAID, v.Refused)
			}
		}
	}
	if refused != 1 {
		t.Errorf("%d keys are refused, wanted one", refused)
	}
	if n := b.set.Generation(); n != 1 {
		t.Errorf("the token is in generation %d", n)
	}
}

// plant makes a key of the ring as a vendor's tool would, before anything else uses the module.
func (b *bench) plant(id []byte, decrypt bool) {
	b.t.Helper()
	pin, err := os.ReadFile(b.token.PINFile)
	if err != nil {
		b.t.Fatal(err)
	}
	defer softhsm.NoForks()()
	ctx := pkcs11.New(b.module.Path())
	must := func(err error) {
		b.t.Helper()
		if err != nil {
			b.t.Fatal(err)
		}
	}
	must(ctx.Initialize())
	defer func() { must(ctx.Finalize()) }()
	slots, err := ctx.GetSlotList(true)
	must(err)
	for _, slot := range slots {
		info, err := ctx.GetTokenInfo(slot)
		must(err)
		if info.Label != "k8s" {
			continue
		}
		s, err := ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		must(err)
		must(ctx.Login(s, pkcs11.CKU_USER, strings.TrimSpace(string(pin))))
		_, err = ctx.GenerateKey(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, p11test.AESKey(ringName, id, pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, decrypt)))
		must(err)
		must(ctx.CloseSession(s))
	}
}
