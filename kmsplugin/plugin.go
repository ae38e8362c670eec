package kmsplugin

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
	"github.com/hsm-kms/hsm-kms/kmsplugin/hold"
	"github.com/hsm-kms/hsm-kms/kmsplugin/limits"
	"github.com/hsm-kms/hsm-kms/kmsplugin/problem"
	"github.com/hsm-kms/hsm-kms/kmsplugin/systemd"
)

// Options say what the plugin serves and to whom it reports. The zero value of a field is its default.
type Options struct {
	Ring   Ring         // required; envelope.Rings where there are read rings
	Logger *slog.Logger // nil: nothing is logged

	Hold *hold.Hold // nil: no outage hold; Run runs it

	ReadRings []*health.Reader // of the rings that are only read; Run runs them

	ProbeInterval     time.Duration // default 30s
	RefreshInterval   time.Duration // default 30s
	WriteContinuation time.Duration // default 1h
	// Random draws what the first pauses between probes are shortened by, from 0 to n; nil: chance. A simulation sets it.
	Random func(n time.Duration) time.Duration

	StateDir string        // where the last proven key_id is kept; "": nowhere
	Proven   health.Proven // as health.LoadProven gave it; its Key is RingConfig.Floor

	AllowedUIDs []uint32 // nil: root and our own uid
	Group       *uint32  // members of this group may connect too; nil: no group

	Recorder Recorder // the audit trail; nil: none
	Metrics  Metrics  // nil: none

	MaxInFlight int           // Encrypt and Decrypt of one connection at work at once, and twice as many of all; default 256
	Conns       limits.Config // bounds on connections; its Dropped is not used
	DrainLimit  time.Duration // how long requests in flight may take after the end; default 10s
}

// firstProbeWait bounds how long Run waits for the first probe before it serves. An HSM that answers does so well within
// it, and the first Status then tells the truth instead of "not checked yet".
const firstProbeWait = time.Second

// Plugin is the service and its server. New makes one; Run runs it once.
type Plugin struct {
	options Options
	health  *health.Health
	service *service
	guard   *guard
	live    *live
	notify  systemd.Notifier
}

// New returns a plugin that does nothing until Run.
func New(o Options) *Plugin {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.AllowedUIDs == nil {
		o.AllowedUIDs = []uint32{0, uint32(os.Geteuid())}
	}
	if o.Recorder == nil {
		o.Recorder = nobody{}
	}
	if o.Metrics == nil {
		o.Metrics = nobody{}
	}
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = 256
	}
	if o.DrainLimit <= 0 {
		o.DrainLimit = 10 * time.Second
	}
	alive := &live{Metrics: o.Metrics}
	o.Metrics = alive
	p := &Plugin{options: o, live: alive, notify: systemd.Notifier{Logger: o.Logger}}
	var stand health.Hold
	if o.Hold != nil {
		stand = o.Hold
	}
	p.health = health.New(health.Config{
		Hold:              stand,
		Ring:              o.Ring,
		ProbeInterval:     o.ProbeInterval,
		RefreshInterval:   o.RefreshInterval,
		WriteContinuation: o.WriteContinuation,
		Random:            o.Random,
		StateDir:          o.StateDir,
		Proven:            o.Proven,
		Logger:            o.Logger,
		Probed:            o.Metrics.Probed,
		Changed:           p.tellManager,
	})
	p.service = &service{ring: o.Ring, read: o.ReadRings, health: p.health, hold: o.Hold}
	p.guard = newGuard(p.service, &p.options)
	return p
}

func (p *Plugin) tellManager(words, keyID string) {
	if keyID != "" {
		words += ", key_id " + keyID
	}
	p.notify.Status(words)
}

// Health is what Status would say now, without being one: what Encrypt seals under does not change by it. words is "ok"
// or fixed words of what is wrong; keyID is "" when Status is an error; lastGood is zero before the first good probe.
func (p *Plugin) Health() (words, keyID string, lastGood time.Time) {
	report := p.health.Report()
	if !report.Key.IsZero() {
		keyID = report.Key.String()
	}
	return problem.Of(report.Problem).Words, keyID, report.LastGood
}

// OnHold says that the plugin answers without the HSM, and for how long it may; "" when it does not.
func (p *Plugin) OnHold() string {
	if p.options.Hold == nil || !p.options.Hold.Holding() { // anybody on the machine may ask, and State takes longer
		return ""
	}
	s := p.options.Hold.State()
	if !s.Holding {
		return ""
	}
	return fmt.Sprintf("on the outage hold since %s, until %s at the latest: do not restart this plugin before the HSM is back",
		s.Since.UTC().Format(time.RFC3339), s.Until.UTC().Format(time.RFC3339))
}

// waitForFirstProbe returns when the first probe has ended, or will not soon.
func (p *Plugin) waitForFirstProbe(ctx context.Context) {
	timer := time.NewTimer(firstProbeWait)
	defer timer.Stop()
	select {
	case <-p.health.First():
	case <-timer.C:
	case <-ctx.Done():
	}
}
