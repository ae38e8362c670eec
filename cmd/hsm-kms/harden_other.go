//go:build !linux

package main

import "errors"

// denyPeeking does nothing here: the flag is Linux's.
func denyPeeking() error { return nil }

// lockMemory is Linux's too: elsewhere the plugin runs for development only.
func lockMemory() error { return errors.New("locking memory is for Linux") }
