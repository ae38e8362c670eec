package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
	"github.com/hsm-kms/hsm-kms/kmsplugin"
	"github.com/hsm-kms/hsm-kms/kmsplugin/audit"
	"github.com/hsm-kms/hsm-kms/kmsplugin/metrics"
)

// trail is the plugin's Recorder: the audit trail, and the counters that go by key. A nil writer: audit is off.
type trail struct {
	writer *audit.Writer
	count  *metrics.Metrics
	log    *slog.Logger
}

// openTrail opens the audit trail, makes its folder if missing, and opens the file again at SIGHUP, for
// logrotate, until ctx ends.
func openTrail(ctx context.Context, cfg *config.Config, log *slog.Logger, count *metrics.Metrics) (*trail, error) {
	if cfg.Audit.Path == "" {
		signal.Ignore(unix.SIGHUP) // logrotate's sender does not mean to end the plugin
		return &trail{log: log, count: count}, nil
	}
	if err := prepareAuditFolder(cfg.Audit.Path); err != nil {
		return nil, err
	}
	writer, err := audit.Open(audit.Options{
		Path: cfg.Audit.Path, Required: cfg.Audit.Required, MaxBytes: cfg.Audit.MaxBytes(), Logger: log,
	})
	if err != nil {
		return nil, err
	}
	t := &trail{writer: writer, log: log, count: count}
	count.ObserveAudit(writer.Stats)
	t.reopenAtHangup(ctx)
	return t, nil
}

// openTrailBeside opens the trail of a command, beside the plugin's: audit.path is set.
func openTrailBeside(cfg *config.Config, name string) (*audit.Writer, error) {
	if err := prepareAuditFolder(cfg.Audit.Path); err != nil {
		return nil, err
	}
	return audit.OpenBeside(cfg.Audit.Path, name, nil)
}

func prepareAuditFolder(path string) error {
	folder := filepath.Dir(path)
	if _, err := ownedfile.MakeFolder(folder, 0o700); err != nil {
		return hint.Wrap(fmt.Errorf("making the audit trail's folder: %w", err), cmp.Or(hint.Of(err), "make "+folder+" for the user that runs the plugin, or set audit.path"))
	}
	return nil
}

func (t *trail) reopenAtHangup(ctx context.Context) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, unix.SIGHUP)
	go func() {
		defer signal.Stop(hangup)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangup:
				if err := t.writer.Reopen(); err != nil {
					t.log.Error("the audit trail could not be opened again", "error", err,
						"hint", cmp.Or(hint.Of(err), "see that the plugin's user can make audit.path and write to it, then send SIGHUP again"))
				}
			}
		}
	}()
}

// Record implements kmsplugin.Recorder.
func (t *trail) Record(op kmsplugin.Operation) error {
	t.count.KeyUsed(op.Operation, op.KeyID, op.Code)
	if t.writer == nil {
		return nil
	}
	return t.writer.Record(audit.Record{
		Time: op.Time, Operation: op.Operation, RequestUID: op.RequestUID, KeyID: op.KeyID,
		Code: op.Code.String(), Duration: op.Duration,
		Peer: audit.Peer{PID: int32(op.Peer.PID), UID: op.Peer.UID, Executable: op.Peer.Executable},
	})
}

func (t *trail) close() {
	if t.writer == nil {
		return
	}
	if err := t.writer.Close(); err != nil {
		t.log.Error("the audit trail's last records may be lost", "error", err)
	}
}

// ourselves is this process, as the trail names peers. The executable is best effort.
func ourselves() audit.Peer {
	executable, _ := os.Executable()
	return audit.Peer{PID: int32(os.Getpid()), UID: uint32(os.Getuid()), Executable: executable} //nolint:gosec // both fit
}

// userName is who runs the command, for people who read the trail.
func userName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "uid " + strconv.Itoa(os.Getuid())
}
