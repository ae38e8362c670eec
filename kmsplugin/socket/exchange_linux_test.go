package socket

import (
	"testing"

	"golang.org/x/sys/unix"
)

// exchange swaps two folders in one step: between two renames the socket would be made again.
func exchange(t *testing.T, a, b string) {
	t.Helper()
	if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
		t.Fatal(err)
	}
}
