package tokens

import (
	"fmt"
	"testing"
)

// NSS sets up a softokn database with a PIN. Its own tool for secret keys, symkeyutil, makes extractable ones without a
// CKA_ID, so keys are to be made through PKCS#11.
func NSS(t *testing.T) *Token { return nss(t, "nss-"+digits(t)) }

// NSSWithoutPIN is NSS with a database whose PIN is the empty one: softokn then needs no login.
func NSSWithoutPIN(t *testing.T) *Token { return nss(t, "") }

func nss(t *testing.T, pin string) *Token {
	t.Helper()
	const name = "NSS softokn"
	need(t, name, "certutil")
	so := module(t, name, "libsoftokn3.so", "nss/libsoftokn3.so")
	folder := t.TempDir()
	pinFile := writePIN(t, pin)
	must(t, "", "certutil", "-N", "-d", "sql:"+folder, "-f", pinFile)
	return &Token{
		Name: name, Module: so, Label: "NSS Certificate DB", PINFile: pinFile, Profile: "aes-gcm",
		Reserved: fmt.Sprintf("configdir='sql:%s' certPrefix='' keyPrefix='' secmod='secmod.db' flags=", folder),
	}
}
