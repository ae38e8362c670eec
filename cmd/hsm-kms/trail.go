package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin"
	"github.com/hsm-kms/hsm-kms/kmsplugin/audit"
)

// trail is the audit trail as the plugin's Recorder; a nil writer: audit is off.
type trail struct {
	writer *audit.Writer
	log    *slog.Logger
}

// openTrail opens the audit trail, makes its folder if missing, and opens the file anew at SIGHUP, for
// logrotate, until ctx ends.
func openTrail(ctx context.Context, cfg *config.Config, log *slog.Logger) (*trail, error) {
	if cfg.Audit.Path == "" {
		return &trail{log: log}, nil
	}
	folder := filepath.Dir(cfg.Audit.Path)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, hint.Wrap(fmt.Errorf("making the audit trail's folder: %w", err), "make "+folder+" for the user that runs the plugin, or set audit.path")
	}
	writer, err := audit.Open(audit.Options{
		Path: cfg.Audit.Path, Required: cfg.Audit.Required, MaxBytes: cfg.Audit.MaxBytes(), Logger: log,
	})
	if err != nil {
		return nil, err
	}
	t := &trail{writer: writer, log: log}
	t.reopenAtHangup(ctx)
	return t, nil
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
					t.log.Error("the audit trail could not be opened anew", "error", err, "hint", hint.Of(err))
				}
			}
		}
	}()
}

// Record implements kmsplugin.Recorder.
func (t *trail) Record(op kmsplugin.Operation) error {
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
