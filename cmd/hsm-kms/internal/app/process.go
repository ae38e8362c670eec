package app

import (
	"context"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/hsm/worker"
)

// Process ends by a signal as any process does, but not while one of its workers logs in or makes or destroys a key. The
// zero Process leaves signals alone.
type Process struct {
	Workers worker.Group   // of this process
	signals chan os.Signal // that end the process; nil: nothing is done about them

	mu  sync.Mutex         // held from a signal to the end of the process: no act begins meanwhile
	act context.Context    // that was begun; nil: none was
	end context.CancelFunc // of act
}

// EndBySignal ends the process by a signal as it would end anyway, but not while a worker of it logs in or makes or destroys
// a key: where this process is the first of a container, its end kills them.
func (p *Process) EndBySignal() (stop func()) {
	p.signals = make(chan os.Signal, 1)
	done := make(chan struct{})
	signal.Notify(p.signals, ending()...)
	go func() {
		select {
		case <-done:
		case sig := <-p.signals:
			p.endBy(sig)
		}
	}()
	return func() {
		signal.Stop(p.signals)
		close(done)
		if p.end != nil {
			p.end()
		}
	}
}

func (p *Process) endBy(sig os.Signal) {
	p.mu.Lock()
	if p.act != nil { // which has got the signal too
		p.mu.Unlock()
		return
	}
	p.Workers.Hold()
	signal.Reset(sig)
	_ = unix.Kill(unix.Getpid(), sig.(unix.Signal)) //nolint:forcetypeassert // it is one
}

// ending are the signals that end a command: SIGTERM, and of SIGINT and SIGHUP those that are not ignored, as they are in a
// shell's background and under nohup. One that is ignored would not end it, and its workers would be held for good.
func ending() []os.Signal {
	all := []os.Signal{unix.SIGTERM}
	for _, sig := range []os.Signal{unix.SIGINT, unix.SIGHUP} {
		if !signal.Ignored(sig) {
			all = append(all, sig)
		}
	}
	return all
}

// UntilSignal ends the context, and no longer the process, at SIGTERM or SIGINT.
func (p *Process) UntilSignal(ctx context.Context) (context.Context, context.CancelFunc) {
	if p.signals != nil {
		signal.Stop(p.signals)
	}
	return signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
}

// Acting is the context of an act that cannot be taken back. From now on a signal ends that context, and no longer the process:
// what is not begun yet is not begun, and the outcome of what is begun is said and recorded, which takes some callTimeouts at
// most. A further act has the same context.
func (p *Process) Acting(ctx context.Context) context.Context {
	if p.signals == nil {
		return ctx
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.act == nil {
		p.act, p.end = signal.NotifyContext(ctx, ending()...)
		signal.Stop(p.signals)
	}
	return p.act
}
