package worker

import (
	"errors"

	"github.com/ThalesIgnite/crypto11"
	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
)

// Keys are made through crypto11, which initialises and finalises the module by itself and takes the PIN as a string that
// nobody can wipe. So a worker that makes keys is ended afterwards.

// Secret is a secret key of 256 bits that is to be made.
type Secret struct {
	Generic    bool               `json:"generic"` // a generic secret for HMAC; otherwise for AES
	Attributes []pkcs11.Attribute `json:"attributes"`
}

// OpenMaker logs in for Make, with the PIN in this state of this file. The module is initialised again for it: sessions
// that were open are gone. The error's text is crypto11's, which keeps no *p11.Error.
func (c *Client) OpenMaker(slot uint, pin pinfile.Identity) error {
	_, err := c.ask(request{header: header{Operation: opOpenMaker}, Slot: slot, PIN: &pin})
	return err
}

// Make makes a key. The error's text is crypto11's.
func (c *Client) Make(key Secret) error {
	_, err := c.ask(request{header: header{Operation: opMake}, Secret: &key})
	return err
}

// openMaker is OpenMaker in the worker.
func (s *server) openMaker(library *p11.Library, slot uint, file pinfile.Identity) error {
	if s.maker != nil {
		return errProtocol
	}
	pin, err := pinfile.ReadState(file)
	if err != nil {
		return err
	}
	defer pin.Wipe()
	if s.asked.Load() > 1 || p11.LanesBusy() > 0 { // C_Finalize under a call crashes libraries
		return errors.New("calls are under way")
	}
	if s.initialized.Swap(false) {
		if err := library.Finalize(); err != nil { // crypto11 fails unless it initialises the module itself
			return err
		}
	}
	number := int(slot)
	s.maker, err = crypto11.Configure(&crypto11.Config{
		Path: s.module, SlotNumber: &number, Pin: string(pin.Bytes()), MaxSessions: 2,
	})
	return err
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
