package p11

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// TestFunctionListIsShared holds miekg/pkcs11 to the layout that listOf reads. SoftHSM's function list is static, so
// each C_GetFunctionList gives the same one.
func TestFunctionListIsShared(t *testing.T) {
	t.Parallel()
	path, err := softhsm.Module()
	if err != nil {
		t.Fatal(err)
	}
	first, err := Load(path, "")
	if err != nil {
		t.Fatal(err)
	}
	second, err := Load(path, "")
	if err != nil {
		t.Fatal(err)
	}
	direct, err := functionList(path)
	if direct == nil || first.list != direct || second.list != direct {
		t.Errorf("function lists %p and %p, the module's own is %p (%v)", first.list, second.list, direct, err)
	}
}

// Why a module cannot be loaded is a text of the thread that tried, which the next call from Go may not be on: it is taken in
// the same call.
func TestLoadSaysWhyForItsOwnPath(t *testing.T) {
	t.Parallel()
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			path := fmt.Sprintf("/nonexistent/module-%d-%s.so", i, strings.Repeat("x", 16*i))
			for range 300 {
				if _, err := Load(path, ""); err == nil || !strings.Contains(err.Error(), ": "+path+": ") {
					t.Errorf("%s: %v", path, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if _, err := Load("/"+strings.Repeat("y", 5000)+".so", ""); err == nil {
		t.Error("no error")
	}
}
