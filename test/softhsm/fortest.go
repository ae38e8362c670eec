package softhsm

import (
	"context"
	"path/filepath"
)

// TB is what ForTest needs of a testing.TB; not that itself, so that no program links package testing.
type TB interface {
	Helper()
	Context() context.Context
	TempDir() string
	Fatal(args ...any)
}

// ForTest makes a token with a random PIN in a folder of the test's and fails the test when it cannot: SoftHSM is
// required, and a test that skips itself proves nothing.
func ForTest(t TB, label string) *Token {
	t.Helper()
	token, err := New(t.Context(), filepath.Join(t.TempDir(), "softhsm"), label, "")
	if err != nil {
		t.Fatal(err)
	}
	return token
}
