package hsm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/hsm/worker"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// workerProcess is a worker as this package uses it: the seam at which a fake takes its place in tests of recovery. For says how
// long its calls may take; the other methods are those of worker.Client.
type workerProcess interface {
	For(ctx context.Context, limit time.Duration) workerCalls
	Hanging(limit time.Duration) (n int, since time.Time)
	Ended() <-chan struct{}
	Why() error
	Died() bool
	Resident() uint64
	End()
	EndNow(ctx context.Context) bool
}

// workerCalls are the calls that a worker makes.
type workerCalls interface {
	p11.API
	LookAtPIN(file pinfile.Identity, key []byte) (pinfile.Look, error)
	OpenMaker(slot uint, pin *pinfile.Identity) error
	Make(secret worker.Secret) error
}

// launch starts a process of this program as a worker.
func launch(ctx context.Context, cfg worker.Config) (workerProcess, error) {
	c, err := worker.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return launched{c}, nil
}

type launched struct{ *worker.Client }

// For implements workerProcess.
func (l launched) For(ctx context.Context, limit time.Duration) workerCalls {
	return l.Client.For(ctx, limit)
}

// startWorker starts a worker for the token's module.
func (t *Token) startWorker(ctx context.Context) (workerProcess, error) {
	env, _ := worker.Environment(os.Environ(), t.cfg.PassEnv)
	for _, name := range slices.Sorted(maps.Keys(t.cfg.Env)) {
		env = append(env, name+"="+t.cfg.Env[name]) // the last one counts
	}
	w, err := t.common.launch(ctx, worker.Config{
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
func (t *Token) watchWorker(w workerProcess) {
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

func hasEnded(w workerProcess) bool {
	select {
	case <-w.Ended():
		return true
	default:
		return false
	}
}

// endInBackground ends a worker: when unused is closed, which is waited for as long as an operation may take; nil: at once.
// It may take connectTimeout more, if a call hangs that must not be interrupted.
func (t *Token) endInBackground(w workerProcess, unused <-chan struct{}) {
	done := make(chan struct{})
	t.mu.Lock()
	t.ends = append(t.ends, done)
	t.mu.Unlock()
	go func() {
		defer close(done)
		if unused != nil {
			select {
			case <-unused:
			case <-w.Ended():
			case <-time.After(t.cfg.CallTimeout):
			}
		}
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
	t.mu.Lock()
	gen := t.gen
	t.mu.Unlock()
	t.drop(gen, shuttingDown)
	t.change(func() { t.endSeek(nil) })
	if t.worker != nil {
		t.worker.End()
	}
	_ = t.waitForEnds(context.Background())
}

// shuttingDown is the reason for dropping a connection that is no news.
const shuttingDown = "the program ends"
