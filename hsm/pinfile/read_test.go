package pinfile

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// A PIN that is being written must not be tried: half of it would cost a login attempt.
func TestReadNoticesAWriter(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(path, []byte("12"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, before, err := open(path, Rules{})
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := os.WriteFile(path, []byte("1234"), 0o600); err != nil {
		t.Fatal(err)
	}
	if pin, err := read(file, before, Rules{}); pin != nil || !errors.Is(err, ErrChanging) || hint.Of(err) == "" {
		t.Errorf("err = %v, want ErrChanging with a hint", err)
	}
}
