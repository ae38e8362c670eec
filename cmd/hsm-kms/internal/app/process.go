package app

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/hsm/worker"
)

// Process ends by a signal as any process does, but not while one of its workers logs in or makes or destroys a key. The
// zero Process leaves signals alone.
type Process struct {
	Workers worker.Group   // of this process
	signals chan os.Signal // that end the process; nil: nothing is done about them
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
			p.Workers.Hold()
			signal.Reset(sig)
			_ = unix.Kill(unix.Getpid(), sig.(unix.Signal)) //nolint:forcetypeassert // it is one
		}
	}()
	return func() { signal.Stop(p.signals); close(done) }
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

// Acting is the context of an act that cannot be taken back, until stop. A signal ends it and not the process: what is not
// begun yet is not begun, and the outcome of what is begun is told and recorded, which takes some callTimeouts at most.
func (p *Process) Acting(ctx context.Context) (act context.Context, stop func()) {
	act, end := signal.NotifyContext(ctx, ending()...)
	if p.signals == nil {
		return act, end
	}
	signal.Stop(p.signals)
	return act, func() {
		signal.Notify(p.signals, ending()...)
		end()
	}
}
