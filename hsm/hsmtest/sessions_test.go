package hsmtest_test

import (
	"sync"
	"testing"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/test/tokens"
)

// tpm2-pkcs11 1.9.0 gives one session handle to two callers of C_OpenSession that come at once, about once in 150 times,
// and the process crashes when both use it.
func TestTPMSessionsAreDistinct(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	library, err := p11.Load(tokens.TPM(t).Module, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := library.Initialize(); err != nil {
		t.Fatal(err)
	}
	defer library.Finalize() //nolint:errcheck // the process ends
	slots, err := library.Slots()
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		handles := make(chan p11.Session, 8)
		start := make(chan struct{})
		var callers sync.WaitGroup
		for range cap(handles) {
			callers.Go(func() {
				<-start
				s, err := library.OpenSession(slots[0], false)
				if err != nil {
					t.Error(err)
				}
				handles <- s
			})
		}
		close(start)
		callers.Wait()
		close(handles)
		seen := map[p11.Session]bool{}
		for s := range handles {
			if seen[s] {
				t.Fatalf("two callers hold session 0x%X", s)
			}
			seen[s] = true
			if err := library.CloseSession(s); err != nil {
				t.Fatal(err)
			}
		}
	}
}
