package p11

import (
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
