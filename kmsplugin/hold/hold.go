package hold

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin/hold/holdfile"
	"github.com/hsm-kms/hsm-kms/kmsplugin/problem"
)

// Budget is how long a request may ask the HSM, all tokens together, before it is away. kube-apiserver waits for 3 s.
const Budget = 1500 * time.Millisecond

// Ring is what the hold needs of envelope.Rings, whose documentation has contexts, errors and concurrency.
type Ring interface {
	Seal(ctx context.Context, id envelope.KeyID, dek []byte) ([]byte, error)
	Open(ctx context.Context, keyID string, envelope []byte) ([]byte, error)
	HoldKey(ctx context.Context, id envelope.KeyID, day envelope.Day) (envelope.HoldKey, error)
	// Views are what the rings look like now, without asking the HSM; the one that is written under is the first.
	Views() []envelope.View
}

// Config says what is held, and for how long. Ring, StateDir, Limit and CallTimeout are required.
type Config struct {
	Ring        Ring
	StateDir    string
	Limit       time.Duration // on hold within 7 days
	CallTimeout time.Duration // of the tokens, the shortest
	Logger      *slog.Logger  // nil: nothing is logged
	// Record keeps an event in the audit trail; nil: nobody does. It is called for one event after the other, beside requests, and may wait.
	Record func(event Event)

	Now    func() time.Time     // nil: time.Now
	Boot   func() time.Duration // time since boot, suspended time included; nil: CLOCK_BOOTTIME
	BootID string               // "": the kernel's
}

// Event is something that happened to the hold.
type Event struct {
	Time   time.Time
	Name   string // EventArmed and the like
	KeyID  string // "": it is about none, or about all
	Reason string
}

// The events. EventProof is the good probe on which a hold rests.
const (
	EventArmed    = "hold.armed"
	EventDisarmed = "hold.disarmed"
	EventDerived  = "hold.derived"
	EventProof    = "hold.proof"
	EventBegan    = "hold.began"
	EventEnded    = "hold.ended"
	EventWiped    = "hold.wiped"
)

// Hold is the outage hold. Run is called once; all other methods may be called from any number of goroutines, before, during
// and after it.
//
// Locks: mu is held for an instant, and comes before store.mu. No call into the HSM and no write of a file is made with it.
type Hold struct {
	cfg      Config
	store    *store
	watching atomic.Bool // mirrors machine.holding, for the path of each request
	armed    atomic.Bool // as it was told last
	events   chan Event  // to the audit trail
	// Each has room for one value: who sends does not wait, and what is there already says the same.
	look  chan struct{} // wakes Run: limits and files
	work  chan struct{} // wakes workBeside: hold keys and listed DEKs
	begun chan struct{} // wakes the probe

	dropStays bool // drop.json could not be removed; Run's alone, and New's before it

	mu       sync.Mutex // guards the fields below
	machine  machine
	up       bool                    // the last probe was good, and nothing failed since
	served   map[envelope.KeyID]bool // by the HSM, as last read
	written  string                  // the ring that is written under
	rings    map[string]bool         // of the configuration, and whether they have been read
	paused   bool                    // somebody wiped the hold with hold drop
	troubles map[string]string       // what keeps the hold from being armed, by what it is about
	why      string                  // what keeps the hold from being armed, as it was told last; "": armed
	reported bool                    // that was told once
	free     bool                    // memory is to be given back to the system, because something was wiped
	state    holdfile.State          // Seed, Added, Left and Dropped of it
}

const (
	recordWait = 2 * time.Second // how long the end of the plugin waits for the audit trail
	maxEvents  = 1024            // that wait for it; of those above it, all but EventDerived are in the log
)

// New returns a hold of which nothing is held yet. Whatever it cannot use is a reason not to be armed, and logged.
func New(cfg Config) *Hold {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Boot == nil {
		cfg.Boot = sinceBoot
	}
	if cfg.BootID == "" {
		cfg.BootID = bootID()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Record == nil {
		cfg.Record = func(Event) {}
	}
	h := &Hold{cfg: cfg, look: make(chan struct{}, 1), work: make(chan struct{}, 1), begun: make(chan struct{}, 1), events: make(chan Event, maxEvents),
		troubles: map[string]string{}, state: holdfile.State{Limit: cfg.Limit}}
	p, err := newPage()
	h.note(aboutPage, err, "raise the limit of locked memory of the plugin (LimitMEMLOCK= of the unit): one page is needed")
	h.store = newStore(p)
	was, err := loadLedger(cfg.StateDir)
	if err != nil {
		cfg.Logger.Warn("the time on hold is not known: all of it counts as used for 7 days", "error", err, "hint", hint.Of(err))
	}
	h.machine.ledger = newLedger(cfg.Limit, was, cfg.BootID, cfg.Boot(), err != nil)
	h.loadList()
	return h
}

// bootID is that of the running kernel; "" where there is none.
func bootID() string {
	text, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text))
}

// Answer is the answer to a request. OnHold: the HSM was not asked, or could not answer.
type Answer struct {
	KeyID  string // under which Bytes are sealed
	Bytes  []byte // the envelope, or the DEK, which the caller wipes
	OnHold bool
}

// Seal is Ring.Seal, and in its place the hold when the HSM is away. On hold the key is that of the last good probe, whatever id
// is. Errors are those of Ring.Seal.
func (h *Hold) Seal(ctx context.Context, id envelope.KeyID, dek []byte) (Answer, error) {
	if h.watching.Load() {
		if a, done, err := h.sealOnHold(dek); done {
			return a, err
		}
	}
	sealed, err := h.ask(ctx, func(ctx context.Context) ([]byte, error) { return h.cfg.Ring.Seal(ctx, id, dek) })
	if err == nil {
		keyID := id.String()
		h.store.put(keyID, sealed, dek)
		return Answer{KeyID: keyID, Bytes: sealed}, nil
	}
	if h.standsIn(ctx, id, err) {
		if a, done, holdErr := h.sealOnHold(dek); done {
			return a, holdErr
		}
	}
	return Answer{}, err
}

// Open is Ring.Open, and in its place the hold when the HSM is away. Errors are those of Ring.Open, and problem.ErrNotHeld.
func (h *Hold) Open(ctx context.Context, keyID string, sealed []byte) (Answer, error) {
	if h.watching.Load() {
		if a, done, err := h.openOnHold(keyID, sealed); done {
			return a, err
		}
	}
	dek, err := h.ask(ctx, func(ctx context.Context) ([]byte, error) { return h.cfg.Ring.Open(ctx, keyID, sealed) })
	if err == nil {
		h.store.put(keyID, sealed, dek)
		return Answer{KeyID: keyID, Bytes: dek}, nil
	}
	id, _, _ := envelope.ParseUsedKeyID(keyID) // otherwise it is of no ring
	if h.standsIn(ctx, id, err) {
		if a, done, holdErr := h.openOnHold(keyID, sealed); done {
			return a, holdErr
		}
	}
	return Answer{}, err
}

// ask asks the HSM for a request: for Budget at most where the hold would answer after it.
func (h *Hold) ask(ctx context.Context, f func(context.Context) ([]byte, error)) ([]byte, error) {
	if !h.armed.Load() {
		return f(ctx)
	}
	return within(ctx, f)
}

// within bounds what is asked of the HSM as a request asks.
func within(ctx context.Context, f func(context.Context) ([]byte, error)) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, Budget)
	defer cancel()
	return f(ctx)
}

// standsIn reports whether the hold answers in place of an HSM that failed like this under the key id, and begins it if need be. A
// caller who had less time than Budget says nothing of the HSM. Nor does a key that the ring does not serve, which takes long to be
// looked for, and one of a ring that is only read says nothing of the HSM that is written with: the probe does that then, at once.
func (h *Hold) standsIn(ctx context.Context, id envelope.KeyID, err error) bool {
	if ctx.Err() != nil || classOf(err) != away {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.machine.holding {
		return true
	}
	if !h.served[id] || id.Ring != h.written {
		h.wake(h.begun)
		return false
	}
	return h.begin(err)
}

// begin begins the hold if it is armed; mu is held. true: it is on.
func (h *Hold) begin(cause error) bool {
	if h.machine.holding {
		return true
	}
	h.up = false
	if h.whyNot() != "" {
		return false
	}
	now, boot := h.cfg.Now(), h.cfg.Boot()
	h.machine.begin(boot, now)
	h.watching.Store(true)
	key, until := h.machine.held.key.String(), now.Add(h.machine.ledger.left(boot))
	h.record(EventProof, key, "the last good probe ended at "+stamp(h.machine.held.at))
	h.record(EventBegan, key, fmt.Sprintf("the HSM is away; until %s at the latest", stamp(until)))
	h.cfg.Logger.Error("the HSM is away: requests are answered by the outage hold", "keyID", key, "lastProof", h.machine.held.at, "until", until,
		"error", cause, "hint", "bring the HSM back, and do not restart this plugin meanwhile: what it holds would be lost; docs/outage.md")
	h.wake(h.look)
	h.wake(h.begun)
	return true
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// sealOnHold answers from the hold. done is false when the hold is not on.
func (h *Hold) sealOnHold(dek []byte) (a Answer, done bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if done, err = h.mayAnswer(); !done || err != nil {
		return Answer{OnHold: done}, done, err
	}
	key, day := h.machine.held.key, h.machine.held.day
	var sealed []byte
	if !h.store.holdKey(key, day, func(k *envelope.HoldKey) { sealed, err = envelope.SealHold(k, key, day, dek) }) {
		return Answer{OnHold: true}, true, fmt.Errorf("%w: the hold key of %s", problem.ErrNotHeld, key)
	}
	if err != nil {
		return Answer{OnHold: true}, true, err
	}
	h.machine.named = true
	a = Answer{KeyID: key.HoldString(), Bytes: sealed, OnHold: true}
	h.store.put(a.KeyID, sealed, dek)
	return a, true, nil
}

// openOnHold answers from the hold. done is false when the hold is not on. The first envelope that it cannot open, and that the HSM might,
// makes Status not ok: this node does not know what the others write.
func (h *Hold) openOnHold(keyID string, sealed []byte) (a Answer, done bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if done, err = h.mayAnswer(); !done || err != nil {
		return Answer{OnHold: done}, done, err
	}
	parsed, err := envelope.Parse(sealed)
	if err != nil {
		return Answer{OnHold: true}, true, err
	}
	id, hold, err := envelope.ParseUsedKeyID(keyID)
	switch {
	case err != nil:
		return Answer{OnHold: true}, true, err
	case hold != (parsed.Profile == envelope.Hold):
		return Answer{OnHold: true}, true, fmt.Errorf("%w: profile %s under the key_id %s", envelope.ErrMalformed, parsed.Profile, keyID)
	case !h.isRing(id.Ring):
		return Answer{OnHold: true}, true, fmt.Errorf("%w: it names the ring %s, which is not served", envelope.ErrUnknownKey, id.Ring)
	}
	a = Answer{KeyID: keyID, OnHold: true}
	if dek, held := h.store.dek(keyID, sealed); held {
		a.Bytes = dek
		return a, true, nil
	}
	if hold {
		if h.store.holdKey(id, parsed.Day(), func(k *envelope.HoldKey) { a.Bytes, err = envelope.OpenHold(k, id, sealed) }) {
			if err == nil {
				h.store.put(keyID, sealed, a.Bytes)
			}
			return a, true, err
		}
	}
	h.machine.short = true
	return Answer{OnHold: true}, true, fmt.Errorf("%w: a DEK under %s", problem.ErrNotHeld, keyID)
}

// isRing reports whether a ring of that name is configured. mu is held.
func (h *Hold) isRing(name string) bool { _, is := h.rings[name]; return is }

// errUncounted: the time on hold cannot be written to stateDir, so it must not go on.
var errUncounted = errors.New("the time on hold is not counted in stateDir yet")

// mayAnswer reports whether the hold is on, and why it may not answer all the same. It ends a hold whose time is over: this is
// the check before every use. mu is held.
func (h *Hold) mayAnswer() (on bool, err error) {
	boot := h.cfg.Boot()
	h.endIfOver(boot)
	switch {
	case !h.machine.holding:
		return false, nil
	case !h.machine.mayAnswer(boot):
		h.wake(h.look)
		return true, fmt.Errorf("%w: %w", envelope.ErrUnavailable, errUncounted)
	}
	return true, nil
}

// endIfOver wipes what is held when the time is used up. mu is held.
func (h *Hold) endIfOver(boot time.Duration) {
	if h.machine.holding && h.machine.over(boot) {
		h.wipe("the time on hold is used up: " + h.cfg.Limit.String() + " within 7 days")
	}
}

// stop ends the hold, if it is on; what is held stays. mu is held.
func (h *Hold) stop(reason string) {
	if !h.machine.holding {
		return
	}
	key, since := h.machine.held.key.String(), h.machine.since
	h.machine.end(h.cfg.Boot())
	h.watching.Store(false)
	h.record(EventEnded, key, reason)
	h.cfg.Logger.Info("the outage hold has ended", "keyID", key, "reason", reason, "since", since)
	h.wake(h.look)
}

// wipe wipes all that is held, and ends the hold. mu is held.
func (h *Hold) wipe(reason string) {
	any := h.store.wipe() // before anything that can take time
	h.stop(reason)
	if any {
		h.wiped("", reason)
	}
}

// wiped logs and records a wipe. mu is held.
func (h *Hold) wiped(keyID, reason string) {
	h.free = true
	h.record(EventWiped, keyID, reason)
	h.cfg.Logger.Warn("what the outage hold held was wiped", "keyID", keyID, "reason", reason)
	h.wake(h.look)
}

// record does not wait: mu may be held, and the trail may hang.
func (h *Hold) record(name, keyID, reason string) {
	select {
	case h.events <- Event{Time: h.cfg.Now(), Name: name, KeyID: keyID, Reason: reason}:
	default:
	}
}

func (h *Hold) wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Holding reports whether the hold is on: the HSM is asked by the probe alone.
func (h *Hold) Holding() bool { return h.watching.Load() }

// Named reports whether Status names K/hold in place of K: an Encrypt was answered under it since the hold began.
func (h *Hold) Named() bool {
	if !h.watching.Load() {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.machine.holding && h.machine.named
}
