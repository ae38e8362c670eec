package kubebin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// lock takes a file lock, waiting for its holder while the context lives. The kernel frees it when its holder dies,
// so a crash leaves nothing to clean; the file itself stays, since removing it would let two hold "the" lock.
func lock(ctx context.Context, path string, log io.Writer) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Clean(path), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock of the tool cache: %w", err)
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for waited := 0; ; waited++ {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("locking the tool cache (%s): %w", path, err)
		}
		if waited%10 == 0 {
			fmt.Fprintf(log, "waiting for another build of kube-apiserver to end (%ds)\n", waited)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("waiting for another build of kube-apiserver: %w", ctx.Err())
		case <-tick.C:
		}
	}
}
