package filelock

import (
	"os"
	"path/filepath"
	"testing"
)

// A lock file that is removed between the opening and the locking does not leave two holders of one lock.
func TestFileThatIsRemovedBeforeItIsLocked(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	var removed *os.File
	lock, err := take(path, func(file *os.File) error {
		if removed == nil {
			removed = file
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		return TryFile(file)
	})
	if err != nil {
		t.Fatal(err)
	}
	if lock.file == removed || !lock.IsAt(path) {
		t.Error("the lock is that of a file that is gone")
	}
	if err := lock.Unlock(); err != nil {
		t.Error(err)
	}
}
