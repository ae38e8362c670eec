package p11

/*
#include "crossing.h"
#include "lane.h"
*/
import "C"

import (
	"time"
	"unsafe"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
)

// slack is how much longer than needed an output buffer is. NSS 3.87 under-reports what AES-GCM needs and
// works only when the buffer is ample at once.
const slack = 64

const tagSize = 16

var _ API = (*Library)(nil)

// EncryptGCM implements API.
func (l *Library) EncryptGCM(_ time.Time, s Session, key Object, nonce, associated, in []byte) ([]byte, error) {
	return l.gcm(false, s, key, nonce, associated, in, len(in)+tagSize+slack)
}

// DecryptGCM implements API. On failure nothing of the output is left in memory.
func (l *Library) DecryptGCM(_ time.Time, s Session, key Object, nonce, associated, in []byte) ([]byte, error) {
	return l.gcm(true, s, key, nonce, associated, in, len(in)+slack)
}

func (l *Library) gcm(decrypt bool, s Session, key Object, nonce, associated, in []byte, size int) ([]byte, error) {
	init, operation, direction := "C_EncryptInit", "C_Encrypt", C.int(0)
	if decrypt {
		init, operation, direction = "C_DecryptInit", "C_Decrypt", 1
	}
	if err := CheckSizes(init, nonce, associated, in); err != nil {
		return nil, err
	}
	out := make([]byte, size)
	var c C.crossing
	C.crossing_gcm(l.list, direction, C.ck_ulong(s), C.ck_ulong(key), bytesOf(nonce), C.ck_ulong(len(nonce)),
		bytesOf(associated), C.ck_ulong(len(associated)), bytesOf(in), C.ck_ulong(len(in)),
		bytesOf(out), C.ck_ulong(len(out)), &c)
	return l.finish(init, operation, &c, out)
}

// EncryptGCMOwnIV implements API.
func (l *Library) EncryptGCMOwnIV(until time.Time, s Session, key Object, iv, associated, in []byte) ([]byte, error) {
	if len(iv) > MaxOwnIV {
		return nil, &Error{"C_EncryptInit", pkcs11.CKR_DATA_LEN_RANGE}
	}
	out, err := l.EncryptGCM(until, s, key, iv, associated, in)
	if err != nil {
		clear(iv)
	}
	return out, err
}

// EncryptECB implements API.
func (l *Library) EncryptECB(_ time.Time, s Session, key Object, in []byte) ([]byte, error) {
	if err := CheckSizes("C_EncryptInit", []byte{0}, []byte{0}, in); err != nil {
		return nil, err
	}
	out := make([]byte, len(in)+slack)
	var c C.crossing
	C.crossing_ecb(l.list, C.ck_ulong(s), C.ck_ulong(key), bytesOf(in), C.ck_ulong(len(in)),
		bytesOf(out), C.ck_ulong(len(out)), &c)
	return l.finish("C_EncryptInit", "C_Encrypt", &c, out)
}

// HMAC implements API.
func (l *Library) HMAC(_ time.Time, s Session, key Object, in []byte) ([]byte, error) {
	if err := CheckSizes("C_SignInit", []byte{0}, []byte{0}, in); err != nil {
		return nil, err
	}
	out := make([]byte, 32+slack)
	var c C.crossing
	C.crossing_hmac(l.list, C.ck_ulong(s), C.ck_ulong(key), bytesOf(in), C.ck_ulong(len(in)),
		bytesOf(out), C.ck_ulong(len(out)), &c)
	return l.finish("C_SignInit", "C_Sign", &c, out)
}

// CheckSizes holds the arguments of an operation against the bounds that all implementations keep.
func CheckSizes(function string, nonce, associated, in []byte) error {
	switch {
	case len(nonce) == 0 || len(associated) == 0 || len(in) == 0:
		return &Error{function, pkcs11.CKR_ARGUMENTS_BAD}
	case len(nonce) > MaxNonce || len(associated) > MaxAssociated || len(in) > MaxIn:
		return &Error{function, pkcs11.CKR_DATA_LEN_RANGE}
	}
	return nil
}

// OpenSession implements API.
func (l *Library) OpenSession(slot uint, readWrite bool) (Session, error) {
	var s C.ck_ulong
	start := time.Now()
	rv := RV(C.crossing_open(l.list, C.ck_ulong(slot), C.ck_ulong(SessionFlags(readWrite)), &s))
	return Session(s), l.done("C_OpenSession", rv, start)
}

// SessionFlags are those of C_OpenSession.
func SessionFlags(readWrite bool) uint {
	if readWrite {
		return pkcs11.CKF_SERIAL_SESSION | pkcs11.CKF_RW_SESSION
	}
	return pkcs11.CKF_SERIAL_SESSION
}

// CloseSession implements API.
func (l *Library) CloseSession(s Session) error {
	start := time.Now()
	return l.done("C_CloseSession", RV(C.crossing_close(l.list, C.ck_ulong(s))), start)
}

// Login implements API. The PIN is handed to the module where it lies, and wiped.
func (l *Library) Login(s Session, file pinfile.Identity) error {
	var from []byte // nil: the protected authentication path (PKCS#11 v2.40, section 5.6, C_Login)
	length := 0
	if !file.IsPINPad() {
		pin, err := pinfile.ReadState(file)
		if err != nil {
			return err
		}
		defer pin.Wipe()
		from, length = pin.Bytes(), len(pin.Bytes())
		if length == 0 {
			from = make([]byte, 1)
		}
	}
	start := time.Now()
	return l.done("C_Login", RV(C.crossing_login(l.list, C.ck_ulong(s), bytesOf(from), C.ck_ulong(length))), start)
}

// ServeLane answers the requests of a lane until the other side closes them. Both are descriptors of pipes that block; it
// takes them over.
func (l *Library) ServeLane(requests, answers int) {
	C.lane_serve(l.list, C.int(requests), C.int(answers))
}

// StopLanes keeps every lane of this process from another call into the module.
func StopLanes() { C.lanes_stop() }

// LanesBusy is how many lanes of this process are inside the module.
func LanesBusy() int { return int(C.lanes_busy()) }

// done reports a call that has returned.
func (l *Library) done(function string, rv RV, start time.Time) error {
	l.hook(function, rv, time.Since(start))
	if rv != 0 {
		return &Error{function, rv}
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
