// Command gomodule is a PKCS#11 module that is written in Go, in front of the one that $GOMODULE_REAL names: a second Go
// runtime in the process that loads it. Build it with -buildmode=c-shared. faultp11.BuildGo does.
package main

/*
#cgo linux LDFLAGS: -ldl
#include <stdlib.h>
#include "list.h"
*/
import "C"

import (
	"runtime"
	"sync/atomic"
	"unsafe"
)

const generalError = 5 // CKR_GENERAL_ERROR

//export C_GetFunctionList
func C_GetFunctionList(list **C.function_list) C.ulong {
	name := C.CString("GOMODULE_REAL")
	defer C.free(unsafe.Pointer(name))
	if *list = C.load(C.getenv(name)); *list == nil {
		return generalError
	}
	return 0
}

//export goInitialize
func goInitialize(args unsafe.Pointer) C.ulong {
	return inGo(func() C.ulong { return C.real_initialize(args) })
}

//export goEncrypt
func goEncrypt(session C.ulong, in *C.uchar, inLen C.ulong, out *C.uchar, outLen *C.ulong) C.ulong {
	return inGo(func() C.ulong { return C.real_encrypt(session, in, inLen, out, outLen) })
}

var calls atomic.Uint64

// inGo makes a call on another goroutine, with some work for the scheduler and the collector of this runtime.
func inGo(call func() C.ulong) C.ulong {
	result := make(chan C.ulong)
	go func() {
		garbage := make([][]byte, 64)
		for i := range garbage {
			garbage[i] = make([]byte, 4096)
		}
		runtime.KeepAlive(garbage)
		if calls.Add(1)%16 == 0 {
			runtime.GC()
		}
		result <- call()
	}()
	return <-result
}

func main() {}
