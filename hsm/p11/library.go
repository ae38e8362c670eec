package p11

/*
#cgo linux LDFLAGS: -ldl
#cgo noescape crossing_gcm
#cgo nocallback crossing_gcm
#cgo noescape crossing_ecb
#cgo nocallback crossing_ecb
#cgo noescape crossing_hmac
#cgo nocallback crossing_hmac
#cgo noescape crossing_login
#cgo nocallback crossing_login
#cgo noescape crossing_open
#cgo nocallback crossing_open
#cgo nocallback lane_serve
#include <stdlib.h>
#include "crossing.h"
*/
import "C"

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// Library is a loaded module. Loading one twice gives, with most modules, the same module instance, and two
// Libraries of one module share its initialisation and its logins: the caller must see to it that there is one.
type Library struct {
	ctx      *pkcs11.Ctx
	list     unsafe.Pointer // the CK_FUNCTION_LIST that ctx calls through too
	reserved unsafe.Pointer // C memory: pReserved of C_Initialize, or nil
	hook     Hook
}

// Load opens the module at path. It is never unloaded: modules have threads and exit handlers of their own.
// reserved is handed to C_Initialize as pReserved ("" for none): NSS softokn takes its parameters there.
func Load(path, reserved string) (*Library, error) {
	if _, err := functionList(path); err != nil {
		return nil, fmt.Errorf("loading PKCS#11 module %s: %w", path, err)
	}
	ctx := pkcs11.New(path)
	if ctx == nil {
		return nil, fmt.Errorf("loading PKCS#11 module %s: %w", path, errors.New("it was loaded once and would not load again"))
	}
	library := &Library{ctx: ctx, list: listOf(ctx), hook: func(string, RV, time.Duration) {}}
	if reserved != "" {
		library.reserved = unsafe.Pointer(C.CString(reserved))
	}
	return library, nil
}

// functionList asks the module at path for its function list; the error says why there is none, which miekg's own
// loading does not.
func functionList(path string) (unsafe.Pointer, error) {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	var why [1024]C.char
	var rv C.ck_ulong
	list := C.crossing_load(name, &why[0], C.size_t(len(why)), &rv)
	switch {
	case why[0] != 0:
		return nil, errors.New(C.GoString(&why[0]))
	case list == nil:
		return nil, &Error{"C_GetFunctionList", RV(rv)}
	}
	return list, nil
}

// listOf is the function list that ctx calls through. p11-kit's client module gives every caller of C_GetFunctionList
// an instance of its own, with an initialisation and sessions of its own, so the crossings must go through this one
// and not through a second. miekg/pkcs11 does not export it: a Ctx is one pointer to the C struct
// {void *handle; CK_FUNCTION_LIST_PTR sym;} (v1.1.2, pkcs11.go), which a test holds it to.
func listOf(ctx *pkcs11.Ctx) unsafe.Pointer {
	type cContext struct{ handle, list unsafe.Pointer }
	return (*(**cContext)(unsafe.Pointer(ctx))).list
}

// With is the same library, its calls reported to hook.
func (l *Library) With(hook Hook) *Library {
	with := *l
	with.hook = hook
	return &with
}

// Through is the same library as ctx sees it. p11-kit's client module gives every caller an instance of its own, with a
// login of its own.
func (l *Library) Through(ctx *pkcs11.Ctx) *Library {
	through := *l
	through.ctx, through.list = ctx, listOf(ctx)
	return &through
}

// call makes one of miekg's calls and reports it.
func (l *Library) call(function string, f func() error) error {
	start := time.Now()
	err := f()
	took := time.Since(start)
	if err == nil {
		l.hook(function, 0, took)
		return nil
	}
	var e pkcs11.Error
	if !errors.As(err, &e) {
		return fmt.Errorf("%s: %w", function, err)
	}
	l.hook(function, RV(e), took)
	return &Error{function, RV(e)}
}

// Initialize is C_Initialize with CKF_OS_LOCKING_OK.
func (l *Library) Initialize() error {
	return l.call("C_Initialize", func() error {
		if l.reserved != nil {
			return l.ctx.Initialize(pkcs11.InitializeWithReserved(l.reserved))
		}
		return l.ctx.Initialize()
	})
}

// Finalize is C_Finalize. No other call may be in flight: it crashes SoftHSM, NSS and opencryptoki.
func (l *Library) Finalize() error { return l.call("C_Finalize", l.ctx.Finalize) }

// Slots implements API.
func (l *Library) Slots() (slots []uint, err error) {
	err = l.call("C_GetSlotList", func() error {
		slots, err = l.ctx.GetSlotList(true)
		return err
	})
	return slots, err
}

// TokenInfo implements API. Some modules answer it only after C_GetSlotInfo for the slot.
func (l *Library) TokenInfo(slot uint) (info pkcs11.TokenInfo, err error) {
	ask := func() error {
		return l.call("C_GetTokenInfo", func() error {
			info, err = l.ctx.GetTokenInfo(slot)
			return err
		})
	}
	if err = ask(); err == nil {
		return info, nil
	}
	known := l.call("C_GetSlotInfo", func() error {
		_, err := l.ctx.GetSlotInfo(slot)
		return err
	})
	if known == nil {
		err = ask()
	}
	return info, err
}

// Mechanism implements API.
func (l *Library) Mechanism(slot, mechanism uint) (info pkcs11.MechanismInfo, err error) {
	err = l.call("C_GetMechanismInfo", func() error {
		info, err = l.ctx.GetMechanismInfo(slot, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)})
		return err
	})
	return info, err
}

// SessionInfo implements API.
func (l *Library) SessionInfo(s Session) (info pkcs11.SessionInfo, err error) {
	err = l.call("C_GetSessionInfo", func() error {
		info, err = l.ctx.GetSessionInfo(s)
		return err
	})
	return info, err
}

// DestroyObject implements API.
func (l *Library) DestroyObject(s Session, o Object) error {
	return l.call("C_DestroyObject", func() error { return l.ctx.DestroyObject(s, o) })
}

// Attribute implements API.
func (l *Library) Attribute(s Session, o Object, attribute uint) (value []byte, err error) {
	err = l.call("C_GetAttributeValue", func() error {
		read, err := l.ctx.GetAttributeValue(s, o, []*pkcs11.Attribute{{Type: attribute}})
		if err == nil && len(read) == 1 {
			value = read[0].Value
		}
		return err
	})
	return value, err
}

// Attributes implements API.
func (l *Library) Attributes(s Session, o Object, attributes []uint) (values map[uint][]byte, err error) {
	template := make([]*pkcs11.Attribute, len(attributes))
	for i, attribute := range attributes {
		template[i] = &pkcs11.Attribute{Type: attribute}
	}
	err = l.call("C_GetAttributeValue", func() error {
		read, err := l.ctx.GetAttributeValue(s, o, template)
		if err == nil {
			values = make(map[uint][]byte, len(read))
			for _, attribute := range read {
				values[attribute.Type] = attribute.Value
			}
		}
		return err
	})
	return values, err
}

// FindSecretKeys implements API.
func (l *Library) FindSecretKeys(s Session, label string, limit int) ([]Object, error) {
	return l.find(s, limit, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
	})
}

// FindData implements API.
func (l *Library) FindData(s Session, application, label string, limit int) ([]Object, error) {
	return l.find(s, limit, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_DATA),
		pkcs11.NewAttribute(pkcs11.CKA_APPLICATION, application),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
	})
}

// CreateData implements API.
func (l *Library) CreateData(s Session, application, label string, value []byte) error {
	template := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_DATA),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_MODIFIABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_APPLICATION, application),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE, value),
	}
	return l.call("C_CreateObject", func() error {
		_, err := l.ctx.CreateObject(s, template)
		return err
	})
}

// find searches. The search is ended whatever becomes of it, or the session would refuse the next one.
func (l *Library) find(s Session, limit int, template []*pkcs11.Attribute) (found []Object, err error) {
	if err := l.call("C_FindObjectsInit", func() error { return l.ctx.FindObjectsInit(s, template) }); err != nil {
		return nil, err
	}
	defer func() {
		end := l.call("C_FindObjectsFinal", func() error { return l.ctx.FindObjectsFinal(s) })
		if err == nil {
			err = end
		}
	}()
	for len(found) < limit {
		var some []Object
		err := l.call("C_FindObjects", func() error {
			var err error
			some, _, err = l.ctx.FindObjects(s, min(limit-len(found), findBatch))
			return err
		})
		if err != nil {
			return nil, err
		}
		if len(some) == 0 {
			return found, nil
		}
		found = append(found, some...)
	}
	return found, nil
}

// findBatch is how many objects one C_FindObjects is asked for.
const findBatch = 256
