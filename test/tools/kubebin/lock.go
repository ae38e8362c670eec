package kubebin

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/hsm-kms/hsm-kms/internal/filelock"
)

// lock locks the tool cache, waiting for another build while the context lives.
func lock(ctx context.Context, path string, log io.Writer) (unlock func(), err error) {
	l, err := filelock.Try(path)
	if errors.Is(err, filelock.ErrHeld) {
		fmt.Fprintln(log, "waiting for another build of kube-apiserver to end")
		l, err = filelock.Wait(ctx, path)
	}
	if err != nil {
		return nil, fmt.Errorf("locking the tool cache: %w", err)
	}
	return func() { _ = l.Unlock() }, nil
}
