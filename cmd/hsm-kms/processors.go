package main

import (
	"os"
	"runtime"
)

// useOneProcessor has serve run its Go code on one processor at a time, unless an operator set GOMAXPROCS. Calls into a
// PKCS#11 module do not count: while one is in C another thread takes over, so they go on side by side as ever.
//
// A request is a chain of short steps on several goroutines, with a call into C in the middle. With more than one
// processor each step wakes another thread that looks for work and finds none: that cost more than the step itself.
// Measured with SoftHSM, one client and eight: a sixth less time, a third less processor time, and a rate a third
// higher; docs/performance.md has the figures. The same on a machine with many processors, where it would cost most.
func useOneProcessor() {
	if _, set := os.LookupEnv("GOMAXPROCS"); !set {
		runtime.GOMAXPROCS(1)
	}
}
