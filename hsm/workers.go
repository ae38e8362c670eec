package hsm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/hsm-kms/hsm-kms/hsm/worker"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// startWorker starts a worker for the token's module.
func (t *Token) startWorker(ctx context.Context) (*worker.Client, error) {
	env, _ := worker.Environment(os.Environ(), t.cfg.PassEnv)
	for _, name := range slices.Sorted(maps.Keys(t.cfg.Env)) {
		env = append(env, name+"="+t.cfg.Env[name]) // the last one counts
	}
	w, err := worker.Start(ctx, worker.Config{
		Token: t.cfg.Name, Module: t.cfg.Module, Reserved: t.cfg.Reserved, Environment: env,
		ConnectTimeout: t.cfg.ConnectTimeout, Generation: t.starts.Add(1), Hook: t.hook, Log: t.log,
		Group: t.common.Workers,
	})
	if errors.Is(err, worker.ErrLoad) {
		return nil, hint.Wrap(fmt.Errorf("%w: %w", ErrConfiguration, err),
			"set module to the vendor's PKCS#11 library; ldd "+t.cfg.Module+" shows which libraries of its own are missing")
	}
	if err == nil {
		t.watchWorker(w)
	}
	return w, err
}

// watchWorker keeps a worker among those that run until it has ended.
func (t *Token) watchWorker(w *worker.Client) {
	t.mu.Lock()
	t.running[w] = struct{}{}
	t.mu.Unlock()
	go func() {
		<-w.Ended()
		if w.Died() {
			t.deaths.Add(1)
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.running, w)
	}()
}

// Workers reports how many worker processes of the token run, how much memory is resident in them (bytes), how many were
// started, and how many ended by themselves. It asks the kernel, and no worker.
func (t *Token) Workers() (running int, resident, started, died uint64) {
	t.mu.Lock()
	all := slices.Collect(maps.Keys(t.running))
	t.mu.Unlock()
	for _, w := range all {
		resident += w.Resident()
	}
	return len(all), resident, t.starts.Load(), t.deaths.Load()
}

func hasEnded(w *worker.Client) bool {
	select {
	case <-w.Ended():
		return true
	default:
		return false
	}
}

// endInBackground ends a worker. That may take connectTimeout, if a call hangs that must not be interrupted.
func (t *Token) endInBackground(w *worker.Client) {
	done := make(chan struct{})
	t.mu.Lock()
	t.ends = append(t.ends, done)
	t.mu.Unlock()
	go func() {
		defer close(done)
		w.End()
	}()
}

// waitForEnds waits until no worker is being ended, so that there are two at most.
func (t *Token) waitForEnds(ctx context.Context) error {
	t.mu.Lock()
	ends := t.ends
	t.mu.Unlock()
	for _, end := range ends {
		select {
		case <-end:
		case <-ctx.Done():
			return fmt.Errorf("waiting until the last worker has ended: %w", errAbandoned)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ends = t.ends[len(ends):]
	return nil
}

// endWorkers ends the token's connection and all its workers, and returns when they have ended.
func (t *Token) endWorkers() {
	t.drop(shuttingDown)
	if t.worker != nil {
		t.worker.End()
	}
	_ = t.waitForEnds(context.Background())
}

// shuttingDown is the reason for dropping a connection that is no news.
const shuttingDown = "the program ends"
