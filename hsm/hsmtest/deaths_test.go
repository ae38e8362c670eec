package hsmtest_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/hsmtest"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/tokens"
)

// die has a real module's process die in each function of an operation by each means, and in those of a connection by one
// means while it comes back: it is back each time, and opens what it sealed before.
func die(t *testing.T, s hsmtest.Subject, deaths ...faultp11.Death) {
	t.Helper()
	module := faultp11.New(t, s.Token.Module, faultp11.Options{})
	s.Token.Module = module.Path()
	s.AddKey(t, time.Now().Add(-time.Minute))
	d := hsmtest.Start(t, s)
	before := seal(t, d)
	operation := map[envelope.Profile][]string{
		envelope.AESGCM:  {"C_DecryptInit", "C_Decrypt"},
		envelope.HMACKDF: {"C_SignInit", "C_Sign"},
	}[s.Common.Profile]
	connection := []string{"C_Initialize", "C_GetSlotList", "C_GetTokenInfo", "C_OpenSession", "C_Login", "C_FindObjectsInit", "C_GetAttributeValue"}
	if s.MakeKey != nil { // a TPM, in which each process that ends uncleanly leaves a session: it has room for few
		operation, connection = operation[:1], nil
	}
	var longest time.Duration
	kill := func(death faultp11.Death, functions ...string) {
		t.Helper()
		died := func() (n int) {
			for _, function := range functions {
				n += module.Injected(function)
			}
			return n
		}
		was := died()
		for _, function := range functions {
			module.Die(function, death).Once()
		}
		took := d.Eventually(time.Minute, fmt.Sprintf("healing after death %d in %q", death, functions), func() error {
			err := before.open(d)
			if err != nil && !errors.Is(err, envelope.ErrUnavailable) {
				t.Fatalf("death %d in %q: %v", death, functions, err)
			}
			if n := died() - was; err == nil && n < len(functions) {
				return fmt.Errorf("it died %d times", n)
			}
			return err
		})
		longest = max(longest, took)
		module.Clear()
	}
	for _, death := range deaths {
		for _, function := range operation {
			kill(death, function)
		}
	}
	for i, function := range connection {
		kill(deaths[i%len(deaths)], operation[0], function)
	}
	if id := d.Ready(); id != before.id {
		t.Errorf("key_id %s, %s before", id, before.id)
	}
	t.Logf("back after %s at the latest", longest.Round(time.Millisecond))
}

func TestOpencryptokiDies(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	die(t, subject(t, tokens.Opencryptoki(t)), faultp11.Segfault, faultp11.Abort, faultp11.Exit, faultp11.HeapSmash)
}

func TestNSSDies(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	s := subject(t, tokens.NSS(t))
	s.Common.AllowImportedKeys = true
	die(t, s, faultp11.Segfault, faultp11.Abort, faultp11.Exit, faultp11.HeapSmash)
}

func TestP11KitDies(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	die(t, subject(t, tokens.P11Kit(t).Token), faultp11.Segfault, faultp11.Abort, faultp11.Exit, faultp11.HeapSmash)
}

func TestTPMDies(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	die(t, subject(t, tokens.TPM(t)), faultp11.Segfault)
}
