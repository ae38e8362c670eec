package hsmtest

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/hsm/p11/p11test"
)

// The errands for which package hsm has no way, done on the bare module in a process that ends after them.

// generateReserved makes an AES key on a token whose module wants a parameter string at C_Initialize (NSS softokn),
// which hsm.Generate cannot give it: crypto11 has no place for one.
func (e errand) generateReserved() error {
	module, session, err := e.open()
	if err != nil {
		return err
	}
	defer module.Finalize() //nolint:errcheck // the process ends
	if _, err := module.GenerateKey(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, p11test.AESKey(e.Ring, e.CKAID)); err != nil {
		return fmt.Errorf("generating a key: %w", err)
	}
	return nil
}

// remove destroys the key.
func (e errand) remove() error {
	module, session, err := e.open()
	if err != nil {
		return err
	}
	defer module.Finalize() //nolint:errcheck // the process ends
	template := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, e.Ring), pkcs11.NewAttribute(pkcs11.CKA_ID, e.CKAID)}
	if err := module.FindObjectsInit(session, template); err != nil {
		return fmt.Errorf("finding the key: %w", err)
	}
	found, _, err := module.FindObjects(session, 2)
	if endErr := module.FindObjectsFinal(session); err != nil || endErr != nil || len(found) != 1 {
		return fmt.Errorf("finding the key: %d found, %w", len(found), errors.Join(err, endErr))
	}
	if err := module.DestroyObject(session, found[0]); err != nil {
		return fmt.Errorf("destroying the key: %w", err)
	}
	return nil
}

// open initialises the module and logs in.
func (e errand) open() (*pkcs11.Ctx, pkcs11.SessionHandle, error) {
	module := pkcs11.New(e.Token.Module)
	if module == nil {
		return nil, 0, fmt.Errorf("loading %s", e.Token.Module)
	}
	var options []pkcs11.InitializeOption
	if e.Token.Reserved != "" {
		// C_Initialize keeps no pointer into the string.
		reserved := append([]byte(e.Token.Reserved), 0)
		options = append(options, pkcs11.InitializeWithReserved(unsafe.Pointer(&reserved[0])))
	}
	if err := module.Initialize(options...); err != nil {
		return nil, 0, fmt.Errorf("initialising: %w", err)
	}
	slot, err := slotOf(module, e.Token.Label)
	if err != nil {
		return nil, 0, err
	}
	session, err := module.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return nil, 0, fmt.Errorf("opening session: %w", err)
	}
	pin, err := os.ReadFile(e.Token.PINFile)
	if err != nil {
		return nil, 0, fmt.Errorf("reading the PIN: %w", err)
	}
	if err := module.Login(session, pkcs11.CKU_USER, strings.TrimSpace(string(pin))); err != nil {
		return nil, 0, fmt.Errorf("logging in: %w", err)
	}
	return module, session, nil
}

func slotOf(module *pkcs11.Ctx, label string) (uint, error) {
	slots, err := module.GetSlotList(true)
	if err != nil {
		return 0, fmt.Errorf("listing slots: %w", err)
	}
	for _, slot := range slots {
		if info, err := module.GetTokenInfo(slot); err == nil && strings.TrimRight(info.Label, " \x00") == label {
			return slot, nil
		}
	}
	return 0, fmt.Errorf("no token %q", label)
}
