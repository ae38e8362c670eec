// Package p11 is the boundary to a PKCS#11 module: just the calls that hsm-kms uses, each with the name and
// the return value of the function that failed. What a failure means, and what to do about it, is package
// hsm's business.
//
// API is the seam between the two. Library is the module in this process: only a worker and tests load one. Package
// worker has the client of a worker process, which is what the program uses. p11test holds every implementation against
// one contract.
//
// It depends on miekg/pkcs11, and on pinfile for PINs. An API may be called from any number of goroutines, one at a time for each
// session.
package p11

import (
	"errors"
	"fmt"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
)

// Session and Object are a module's handles. They mean nothing after the C_Finalize, the closed session or
// the lost login that ended them, and their numbers are used again.
type (
	Session = pkcs11.SessionHandle
	Object  = pkcs11.ObjectHandle
)

// API is the calls into a module that are in use.
//
// Concurrency: the module itself is thread-safe (CKF_OS_LOCKING_OK), a session is not: one call at a time.
//
// A call into a module cannot be cancelled. An implementation that can stop waiting returns *Overdue; the call goes on all
// the same, and its session must not be used until it has returned, but for CloseSession. Other errors are *Error, ErrEnded,
// or, from Login, what package pinfile says of the file.
type API interface {
	Initialize() error
	// Slots lists the slots that hold a token.
	Slots() ([]uint, error)
	TokenInfo(slot uint) (pkcs11.TokenInfo, error)
	Mechanism(slot, mechanism uint) (pkcs11.MechanismInfo, error)
	// OpenSession opens a read-only session unless readWrite is set. A library that refuses those gives a read-write one.
	OpenSession(slot uint, readWrite bool) (Session, error)
	// CloseSession closes a session. One in which a call is overdue is closed when that has returned.
	CloseSession(s Session) error
	SessionInfo(s Session) (pkcs11.SessionInfo, error)
	// Login logs the user in with the PIN in this state of this file. A file that is in another state by now is
	// pinfile.ErrChanging, and no login is tried. Without a file C_Login gets no PIN, and the token asks for it itself.
	Login(s Session, pin pinfile.Identity) error
	// FindSecretKeys finds the secret keys of one label, at most limit.
	FindSecretKeys(s Session, label string, limit int) ([]Object, error)
	// FindData finds the data objects (CKO_DATA) of one CKA_APPLICATION and label, at most limit.
	FindData(s Session, application, label string, limit int) ([]Object, error)
	// CreateData makes a private data object that stays on the token and cannot be changed. s is a session to write.
	CreateData(s Session, application, label string, value []byte) error
	// Attribute reads one attribute; the value is a copy.
	Attribute(s Session, o Object, attribute uint) ([]byte, error)
	// Attributes reads several in one request; the values are copies. A token fails the whole request for one
	// attribute that it does not know or not tell.
	Attributes(s Session, o Object, attributes []uint) (map[uint][]byte, error)
	DestroyObject(s Session, o Object) error

	// EncryptGCM and DecryptGCM are C_EncryptInit with C_Encrypt, and C_DecryptInit with C_Decrypt, in one
	// crossing (CKM_AES_GCM, 128-bit tag). associated and in must not be empty. They are overdue at until; zero: only
	// when any call would be.
	EncryptGCM(until time.Time, s Session, key Object, nonce, associated, in []byte) ([]byte, error)
	DecryptGCM(until time.Time, s Session, key Object, nonce, associated, in []byte) ([]byte, error)
	// EncryptGCMOwnIV is EncryptGCM with an IV that the module makes: iv, which the caller has filled with zeros, is handed
	// over, and holds afterwards what the module left there. What it appends to the tag is in the output. iv has MaxOwnIV
	// bytes at most; after an error it is zero.
	EncryptGCMOwnIV(until time.Time, s Session, key Object, iv, associated, in []byte) ([]byte, error)
	// EncryptECB is C_EncryptInit with C_Encrypt of whole blocks in one crossing (CKM_AES_ECB). in must not be empty.
	EncryptECB(until time.Time, s Session, key Object, in []byte) ([]byte, error)
	// HMAC is C_SignInit with C_Sign in one crossing (CKM_SHA256_HMAC). in must not be empty.
	HMAC(until time.Time, s Session, key Object, in []byte) ([]byte, error)
}

// The bounds of one operation, in bytes, which every implementation keeps: a longer argument is CKR_DATA_LEN_RANGE.
const (
	MaxNonce      = 64
	MaxAssociated = 2048
	MaxIn         = 4096
	MaxOwnIV      = 16 // of an IV that the module makes
)

var (
	// ErrOverdue is every *Overdue.
	ErrOverdue = errors.New("the HSM has not answered in time")
	// ErrEnded: the process that the module runs in has ended. What a call under way has done is not known.
	ErrEnded = errors.New("the process of the PKCS#11 module has ended")
)

// Hook is told of every call when it has returned. It must not block.
type Hook func(function string, rv RV, took time.Duration)

// RV is a CK_RV.
type RV uint

// String is the CKR name, or the number of a vendor's own value.
func (rv RV) String() string {
	switch rv {
	case pkcs11.CKR_OK:
		return "CKR_OK" // on every call's path: no formatting
	case aeadDecryptFailed:
		return "CKR_AEAD_DECRYPT_FAILED"
	}
	text := pkcs11.Error(rv).Error()
	if i := lastColon(text); i >= 0 && i+2 < len(text) {
		return text[i+2:]
	}
	return fmt.Sprintf("CKR 0x%08X", uint(rv))
}

// aeadDecryptFailed is PKCS#11 v3.0's own value for a tag that does not fit; miekg/pkcs11 has v2.40.
const aeadDecryptFailed RV = 0x42

func lastColon(text string) int {
	for i := len(text) - 1; i >= 0; i-- {
		if text[i] == ':' {
			return i
		}
	}
	return -1
}

// Error is the failure of one call.
type Error struct {
	Function string // C_Encrypt
	RV       RV
}

// Error names function and CKR.
func (e *Error) Error() string { return fmt.Sprintf("%s: %s", e.Function, e.RV) }

// Overdue is the error of a call that no one waits for any more. It may still be done.
type Overdue struct {
	Function string
	Returned <-chan struct{} // closed when it has returned, or can no longer return
	Cause    error           // why no one waits: nil, or the caller's context's error
}

func (o *Overdue) Error() string { return fmt.Sprintf("%s: %s", o.Function, ErrOverdue) }

// Is reports whether target is ErrOverdue or the cause.
func (o *Overdue) Is(target error) bool {
	return target == ErrOverdue || o.Cause != nil && target == o.Cause
}

// SessionIsGone reports whether C_CloseSession failed because there is nothing to close.
func SessionIsGone(err error) bool {
	rv, ok := RVOf(err)
	if !ok {
		return false
	}
	switch rv {
	case pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED,
		pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_SLOT_ID_INVALID:
		return true
	}
	return false
}

// RVOf is the return value in err's chain; ok is false when there is none.
func RVOf(err error) (rv RV, ok bool) {
	if e, found := errors.AsType[*Error](err); found {
		return e.RV, true
	}
	return 0, false
}
