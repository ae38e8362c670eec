package daemon

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin"
	"github.com/hsm-kms/hsm-kms/kmsplugin/audit"
	"github.com/hsm-kms/hsm-kms/kmsplugin/hold"
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
	if err := app.PrepareAuditFolder(cfg.Audit.Path); err != nil {
		return nil, err
	}
	writer, err := audit.Open(audit.Options{
		Path: cfg.Audit.Path, Required: cfg.Audit.Required, PodVolume: cfg.AllowPodVolumes, MaxBytes: cfg.Audit.MaxBytes(), Logger: log,
	})
	if err != nil {
		return nil, err
	}
	t := &trail{writer: writer, log: log, count: count}
	count.ObserveAudit(writer.Stats)
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
					t.log.Error("the audit trail could not be opened again", "error", err,
						"hint", cmp.Or(hint.Of(err), "check that the plugin's user can make audit.path and write to it, then send SIGHUP again"))
				}
			}
		}
	}()
}

// Record implements kmsplugin.Recorder.
func (t *trail) Record(ctx context.Context, op kmsplugin.Operation) error {
	t.count.KeyUsed(op.Operation, op.KeyID, op.Code)
	if t.writer == nil {
		return nil
	}
	return t.writer.Record(ctx, audit.Record{
		Time: op.Time, Operation: op.Operation, RequestUID: op.RequestUID, KeyID: op.KeyID,
		Code: op.Code.String(), Duration: op.Duration,
		Peer:   audit.Peer{PID: int32(op.Peer.PID), UID: op.Peer.UID, Executable: op.Peer.Executable},
		OnHold: op.OnHold,
	})
}

// event keeps an event of the outage hold. Its peer is the plugin itself. What cannot be written is counted and logged by the writer.
func (t *trail) event(e hold.Event) {
	if t.writer == nil {
		return
	}
	_ = t.writer.Record(context.Background(), audit.Record{
		Time: e.Time, Operation: e.Name, KeyID: e.KeyID, Code: codes.OK.String(), Reason: e.Reason,
		Peer: audit.Peer{PID: int32(os.Getpid()), UID: uint32(os.Geteuid())},
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
