// Package faultp11 is a PKCS#11 module that stands in front of a real one, usually SoftHSM, and does to its calls
// what a test says, live: answers with an error, reports a done call as failed, damages output, delays, hangs, loses
// sessions or the login. It counts what it sees. Nothing in it is mocked: what it does not hold back happens on a real
// token.
//
// The module itself is C (folder module) and is built by the first use. This package is the test's side: it lays out
// an instance (New, Install), and reads and writes the control file that the module maps too (Control). The two may be
// in one process or in two: Open opens the control file of a module that another process has loaded.
//
// This package builds, lays out and controls the module. It knows no cgo and no PKCS#11 types.
package faultp11
