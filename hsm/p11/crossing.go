package p11

/*
#include "crossing.h"
*/
import "C"

import (
	"time"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// slack is how much longer than needed an output buffer is. NSS 3.87 under-reports what AES-GCM needs and
// works only when the buffer is ample at once.
const slack = 64

const tagSize = 16

var _ API = (*Library)(nil)

// EncryptGCM implements API.
func (l *Library) EncryptGCM(s Session, key Object, nonce, associated, in []byte) ([]byte, error) {
	return l.gcm(false, s, key, nonce, associated, in, len(in)+tagSize+slack)
}

// DecryptGCM implements API. On failure nothing of the output is left in memory.
func (l *Library) DecryptGCM(s Session, key Object, nonce, associated, in []byte) ([]byte, error) {
	return l.gcm(true, s, key, nonce, associated, in, len(in)+slack)
}

func (l *Library) gcm(decrypt bool, s Session, key Object, nonce, associated, in []byte, size int) ([]byte, error) {
	init, operation, direction := "C_EncryptInit", "C_Encrypt", C.int(0)
	if decrypt {
		init, operation, direction = "C_DecryptInit", "C_Decrypt", 1
	}
	if len(nonce) == 0 || len(associated) == 0 || len(in) == 0 {
		return nil, &Error{init, pkcs11.CKR_ARGUMENTS_BAD}
	}
	out := make([]byte, size)
	var c C.crossing
	C.crossing_gcm(l.list, direction, C.ck_ulong(s), C.ck_ulong(key), bytesOf(nonce), C.ck_ulong(len(nonce)),
		bytesOf(associated), C.ck_ulong(len(associated)), bytesOf(in), C.ck_ulong(len(in)),
		bytesOf(out), C.ck_ulong(len(out)), &c)
	return l.finish(init, operation, &c, out)
}

// HMAC implements API.
func (l *Library) HMAC(s Session, key Object, in []byte) ([]byte, error) {
	if len(in) == 0 {
		return nil, &Error{"C_SignInit", pkcs11.CKR_ARGUMENTS_BAD}
	}
	out := make([]byte, 32+slack)
	var c C.crossing
	C.crossing_hmac(l.list, C.ck_ulong(s), C.ck_ulong(key), bytesOf(in), C.ck_ulong(len(in)),
		bytesOf(out), C.ck_ulong(len(out)), &c)
	return l.finish("C_SignInit", "C_Sign", &c, out)
}

// Login implements API.
func (l *Library) Login(s Session, pin []byte) error {
	empty := [1]byte{}
	from := empty[:]
	if len(pin) > 0 {
		from = pin
	}
	start := time.Now()
	rv := RV(C.crossing_login(l.list, C.ck_ulong(s), bytesOf(from), C.ck_ulong(len(pin))))
	l.hook("C_Login", rv, time.Since(start))
	if rv != 0 {
		return &Error{"C_Login", rv}
	}
	return nil
}

// finish reports both calls of a crossing and returns what it gave.
func (l *Library) finish(init, operation string, c *C.crossing, out []byte) ([]byte, error) {
	l.hook(init, RV(c.init_rv), time.Duration(c.init_ns))
	if c.init_rv != 0 {
		return nil, &Error{init, RV(c.init_rv)}
	}
	l.hook(operation, RV(c.rv), time.Duration(c.ns))
	if c.rv != 0 {
		clear(out)
		return nil, &Error{operation, RV(c.rv)}
	}
	if uint64(c.out_len) > uint64(len(out)) {
		clear(out)
		return nil, &Error{operation, pkcs11.CKR_GENERAL_ERROR} // a module that reports more than it was given room for
	}
	return out[:c.out_len], nil
}

func bytesOf(b []byte) *C.uchar { return (*C.uchar)(unsafe.Pointer(unsafe.SliceData(b))) }
