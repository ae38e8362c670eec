package latch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
)

// Clear removes what stands against this PIN file on this token, also a latch that cannot be understood, so that one more
// attempt is made. Only a person who knows that the PIN is right may ask for it. ctx bounds the wait for another
// process's login.
func (l *Latch) Clear(ctx context.Context, token string, file pinfile.Identity) error {
	unlock, err := l.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	standing, err := filepath.Glob(filepath.Join(l.dir, "pin-latch-*.json"))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	own := l.path(token, file)
	for _, path := range standing {
		other, err := read(path)
		if path != own && (err != nil || !other.speaksOf(token, file)) {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: removing the latch: %w", ErrState, err)
		}
	}
	return nil
}
