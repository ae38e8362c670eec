package worker

import (
	"errors"
	"reflect"

	"github.com/ThalesIgnite/crypto11"
	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
)

// Keys are made through crypto11, which initialises and finalises the module by itself. So a worker that makes keys is ended
// afterwards.

// Secret is a secret key of 256 bits that is to be made.
type Secret struct {
	Generic    bool               `json:"generic"` // a generic secret for HMAC; otherwise for AES
	Attributes []pkcs11.Attribute `json:"attributes"`
}

// OpenMaker logs in for Make as Login does; nil: no login is made. The module is initialised again for it: sessions that
// were open are gone. The error's text is crypto11's, which keeps no *p11.Error, where it is not C_Login that failed.
func (c *Client) OpenMaker(slot uint, pin *pinfile.Identity) error {
	_, err := c.ask(request{header: header{Operation: opOpenMaker}, Slot: slot, PIN: pin})
	return err
}

// Make makes a key. The error's text is crypto11's.
func (c *Client) Make(key Secret) error {
	_, err := c.ask(request{header: header{Operation: opMake}, Secret: &key})
	return err
}

// openMaker is OpenMaker in the worker.
func (s *server) openMaker(library *p11.Library, slot uint, file *pinfile.Identity) error {
	if s.maker != nil {
		return errProtocol
	}
	if s.asked.Load() > 1 || p11.LanesBusy() > 0 { // C_Finalize under a call crashes libraries
		return errors.New("calls are under way")
	}
	if s.initialized.Swap(false) {
		if err := library.Finalize(); err != nil { // crypto11 fails unless it initialises the module itself
			return err
		}
	}
	number := int(slot)
	var err error
	s.maker, err = crypto11.Configure(&crypto11.Config{Path: s.module, SlotNumber: &number, MaxSessions: 2, LoginNotSupported: true})
	if err != nil || file == nil {
		return err
	}
	ctx, session := connectionOf(s.maker)
	return library.Through(ctx).Login(session, *file)
}

// connectionOf is what crypto11 works on, and does not export: its session that stays, in which a login counts for all of
// them. So the PIN is read and handed over in one place, and a token with a PIN pad gets none.
func connectionOf(maker *crypto11.Context) (*pkcs11.Ctx, p11.Session) {
	fields := reflect.ValueOf(maker).Elem()
	return (*pkcs11.Ctx)(fields.FieldByName("ctx").UnsafePointer()), p11.Session(fields.FieldByName("persistentSession").Uint())
}

// make is Make in the worker.
func (s *server) make(key *Secret) error {
	if s.maker == nil {
		return errors.New("nobody has logged in to make keys")
	}
	template := crypto11.NewAttributeSet()
	var id []byte
	for i := range key.Attributes {
		template.AddIfNotPresent([]*pkcs11.Attribute{&key.Attributes[i]})
		if key.Attributes[i].Type == pkcs11.CKA_ID {
			id = key.Attributes[i].Value
		}
	}
	// crypto11 opens its session for the first call that needs one, and keeps it. That may take long, and the program may
	// end meanwhile: it is not to happen inside the call that makes a key.
	if !s.makerOpen {
		if _, err := s.maker.FindKey(id, nil); err != nil {
			return err
		}
		s.makerOpen = true
		if s.isAlone() {
			return errAlone
		}
	}
	cipher := crypto11.CipherAES
	if key.Generic {
		cipher = crypto11.CipherGeneric
	}
	_, err := s.maker.GenerateSecretKeyWithAttributes(template, 256, cipher)
	return err
}
