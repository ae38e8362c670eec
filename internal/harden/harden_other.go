//go:build !linux

package harden

import "errors"

// denyPeeking does nothing here: the flag is Linux's.
func denyPeeking() error { return nil }

// LockMemory is Linux's too: elsewhere the plugin runs for development only.
func LockMemory() error { return errors.New("locking memory is for Linux") }
