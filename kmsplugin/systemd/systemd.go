// Package systemd speaks to the service manager: it takes an activated socket over and tells readiness and life
// (sd_listen_fds(3), sd_notify(3)). It depends on go-systemd and hint. Without systemd all of it does nothing. A Notifier may be used by
// any number of goroutines; Listener is called once, before any of them.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// Listener returns the socket that the manager passed, or nil when it passed none. Closing it leaves the socket file,
// which is the manager's. Whatever else than one listening Unix stream socket was passed is an error. The environment
// is used up, so that child processes do not see it.
func Listener() (*net.UnixListener, error) {
	files := activation.Files(true)
	if len(files) == 0 {
		return nil, nil
	}
	defer func() {
		for _, file := range files {
			_ = file.Close() // net has a descriptor of its own
		}
	}()
	advice := "let the socket unit have one ListenStream= with an absolute path, and no other Listen line"
	if len(files) != 1 {
		return nil, hint.Wrap(fmt.Errorf("taking the activated socket over: %d were passed, one is needed", len(files)), advice)
	}
	l, err := unixListener(files[0])
	if err != nil {
		return nil, hint.Wrap(fmt.Errorf("taking the activated socket over: %w", err), advice)
	}
	return l, nil
}

func unixListener(file *os.File) (*net.UnixListener, error) {
	// net.FileListener takes a connected socket too, and fails at the first Accept only.
	listening, err := unix.GetsockoptInt(int(file.Fd()), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return nil, fmt.Errorf("looking at descriptor %s: %w", file.Name(), err)
	}
	kind, err := unix.GetsockoptInt(int(file.Fd()), unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, fmt.Errorf("looking at descriptor %s: %w", file.Name(), err)
	}
	if listening == 0 || kind != unix.SOCK_STREAM {
		return nil, errors.New("it is not a listening stream socket")
	}
	l, err := net.FileListener(file)
	if err != nil {
		return nil, err
	}
	unixListener, ok := l.(*net.UnixListener)
	if !ok {
		_ = l.Close()
		return nil, fmt.Errorf("it is a %s socket, not a Unix one", l.Addr().Network())
	}
	return unixListener, nil
}

// Notifier tells the manager how the service is. A failure to tell is logged and changes nothing else.
type Notifier struct{ Logger *slog.Logger }

// Ready: requests are served from now on.
func (n Notifier) Ready() { n.send(daemon.SdNotifyReady) }

// Stopping: the drain has begun.
func (n Notifier) Stopping() { n.send(daemon.SdNotifyStopping) }

// Status is the line that systemctl status shows. text is one line.
func (n Notifier) Status(text string) { n.send("STATUS=" + text) }

// Watch keeps the watchdog content until ctx ends, twice in its interval, if the unit has one, and as long as live is nil.
// It shows that this process works; what the HSM does is not its business: a restart does not repair an HSM, and takes
// Decrypt away.
func (n Notifier) Watch(ctx context.Context, live func() error) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		n.Logger.Warn("the systemd watchdog is off", "error", err)
	}
	if err != nil || interval <= 0 {
		return
	}
	ticker := time.NewTicker(max(interval/2, time.Millisecond))
	defer ticker.Stop()
	for {
		if live() == nil {
			n.send(daemon.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (n Notifier) send(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		n.Logger.Debug("systemd was not told", "state", state, "error", err)
	}
}
