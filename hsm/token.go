package hsm

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/guard"
	"github.com/hsm-kms/hsm-kms/hsm/noncememory"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/hsm/worker"
	"github.com/hsm-kms/hsm-kms/internal/growmap"
)

// TokenConfig is one token of the configuration. At least one of Label, Serial and Slot is given; the token must fit all
// that are, and Manufacturer and Model as well.
type TokenConfig struct {
	Name        string
	Module      string // path
	Reserved    string // pReserved of C_Initialize: only NSS softokn needs it
	Label       string
	Serial      string
	Slot        *uint
	Login       Login
	PINFile     string            // for LoginPIN
	PINRules    pinfile.Rules     // of that file
	MaxSessions int               // working sessions; one more is for login and refresh
	CallTimeout time.Duration     // of one operation, and of every single call besides
	Env         map[string]string // of the worker, over this process's own
	PassEnv     []string          // names or prefixes (NAME_*) that the worker gets of this process's environment; see worker.Environment
	// IVAppended: in profile aes-gcm-hsm-iv the token appends its nonce, of 16 bytes, to the tag.
	IVAppended bool
	// Manufacturer and Model are empty for any.
	Manufacturer, Model string
	// ConnectTimeout is for loading the module, C_Initialize and the first reading of the ring, each attempt; 0: 30 s.
	ConnectTimeout time.Duration
	Swap           Swap
}

// Login is how a token is logged in to.
type Login int

const (
	// LoginPIN: with the PIN in a file.
	LoginPIN Login = iota
	// LoginNone: not at all. The token shows its private keys to everybody.
	LoginNone
	// LoginPINPad: C_Login without a PIN, for which the token asks itself (CKF_PROTECTED_AUTHENTICATION_PATH).
	LoginPINPad
)

// DefaultConnectTimeout is TokenConfig.ConnectTimeout where it is 0.
const DefaultConnectTimeout = 30 * time.Second

// Config is what all tokens of a ring have in common.
type Config struct {
	Ring              string
	Profile           envelope.Profile
	AllowImportedKeys bool
	StateDir          string // of the records of PIN attempts
	MaxWaiting        int    // callers that may wait for one token's sessions; 0: 512
	// NextAfter is when the last token is asked at the latest while one before it has not answered; those between are asked at
	// equal distances. The first answer counts. 0: each token gets an equal share of the caller's time, one after the other.
	NextAfter time.Duration
	Workers   *worker.Group     // that all workers join; nil: none
	Observer  envelope.Observer // nil: nobody counts
	Log       *slog.Logger      // nil: slog.Default()

	clock   func() time.Time                                            // of the attempt guard; nil: time.Now
	launch  func(context.Context, worker.Config) (workerProcess, error) // of workers; nil: launch
	memory  *noncememory.Memory
	viewAge time.Duration // see defaultViewAge
}

// Token is one PKCS#11 token as an envelope.Token. Run keeps it connected; operations on a token that is not
// connected fail with ErrUnavailable, or with what a person must correct.
//
// Concurrency: all methods may be called from any number of goroutines. The supervisor is one goroutine, and what belongs to its
// attempt needs no lock. permits, alone and admin are held while the token is asked, and waited for with a context: alone comes
// before permits. mu is held for an instant, and comes after them and before generation.mu; no call into the token is made with it.
type Token struct {
	cfg    TokenConfig
	common *Config
	guard  *guard.Guard
	log    *slog.Logger
	hook   p11.Hook
	starts atomic.Uint64 // of workers
	deaths atomic.Uint64 // of workers, by themselves

	worker workerProcess // the present one; nil: none. It belongs to the attempt that is under way, or to run.
	// loginFailed is what the last login failed with; nil: none has. It belongs to the attempt as well.
	loginFailed error
	looksAgain  bool // the login lock is held for all of a second look; it belongs to the attempt too

	permits chan struct{} // one for each working session that exists or is being opened
	alone   chan struct{} // holds one value while an operation takes all permits
	deadly  *deadly
	waiting atomic.Int32 // callers waiting for a permit
	// nonces are the random nonces that this process has used with each key: requests, probes and self-tests alike, since the
	// bound on them (NIST SP 800-38D section 8.3: 2^32 for one key) knows no difference.
	nonces growmap.Counts[envelope.KeyID]
	own    *ownNonces
	rate   failureRate
	admin  chan struct{} // holds one value while the admin session is in use
	lastOK atomic.Int64  // unix nanoseconds of the last call that succeeded
	wake   chan struct{} // tells the supervisor that something was suspected
	tried  chan struct{} // closed after the first attempt to connect

	mu        sync.Mutex                   // guards the fields below
	gen       *generation                  // nil: not connected
	since     time.Time                    // when the last generation was made
	number    uint64                       // of the last generation
	suspects  map[envelope.KeyID]suspicion // of gen, until the supervisor has looked into them
	suspended map[envelope.KeyID]*suspension
	cause     error                        // why gen is nil, once an attempt has failed; nil: an attempt is under way
	dedup     logDeduplicator              // what the log was told
	changed   chan struct{}                // closed and replaced at each change of the above
	retired   []*generation                // dropped, and their idle sessions not closed yet
	ends      []chan struct{}              // of workers that are being ended; each is closed when one has
	forgiven  int                          // hanging calls that a half-open check has shown to be of no weight
	burned    int                          // permits taken out because the token itself refused that many sessions
	newWorker bool                         // the next attempt takes a new worker: a session was left open, or the module says that it is not initialised
	hadKeys   bool                         // the last generation that was believed held keys
	shown     *table                       // by the last generation that was believed; nil: there was none
	swap      swap                         // what is known of replacing the worker while it serves
	unknown   map[envelope.KeyID]time.Time // keys that a new worker did not show either, and since when
	running   map[workerProcess]struct{}   // workers that have not ended
}

func newToken(cfg TokenConfig, common *Config) *Token {
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = DefaultConnectTimeout
	}
	t := &Token{
		cfg: cfg, common: common, dedup: newLogDeduplicator(),
		guard:   guard.New(common.StateDir, common.clock),
		log:     common.Log.With("token", cfg.Name),
		permits: make(chan struct{}, cfg.MaxSessions),
		alone:   make(chan struct{}, 1),
		deadly:  newDeadly(),
		admin:   make(chan struct{}, 1),
		wake:    make(chan struct{}, 1),
		tried:   make(chan struct{}),
		changed: make(chan struct{}),
		running: map[workerProcess]struct{}{},

		suspects:  map[envelope.KeyID]suspicion{},
		suspended: map[envelope.KeyID]*suspension{},
		unknown:   map[envelope.KeyID]time.Time{},
	}
	t.own = &ownNonces{token: cfg.Name, appended: cfg.IVAppended, memory: common.memory, counts: &t.nonces}
	t.hook = func(function string, rv p11.RV, took time.Duration) {
		if rv == 0 {
			t.lastOK.Store(time.Now().UnixNano())
		}
		if common.Observer != nil {
			common.Observer.HSMCall(cfg.Name, function, rv.String(), took)
		}
	}
	return t
}

var _ envelope.Distruster = (*Token)(nil)

// Name implements envelope.Token.
func (t *Token) Name() string { return t.cfg.Name }

// Generation implements envelope.Token.
func (t *Token) Generation() uint64 {
	if t.circuitOpen() {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gen == nil {
		return 0
	}
	return t.gen.number
}

// Problem implements envelope.Token.
func (t *Token) Problem() error {
	if t.circuitOpen() {
		return t.hangs()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gen != nil {
		return nil
	}
	return t.unavailable(t.cause)
}

// Sessions is how many sessions this program has open on the token, that for login and refresh included.
func (t *Token) Sessions() int {
	t.mu.Lock()
	gen, burned := t.gen, t.burned
	t.mu.Unlock()
	n := len(t.permits) - burned // those at work, abandoned ones included
	if gen == nil {
		return n
	}
	gen.mu.Lock()
	defer gen.mu.Unlock()
	return n + len(gen.idle) + len(gen.unclosed) + 1
}

func (t *Token) hangs() error {
	return fmt.Errorf("token %s: %w: calls hang in its module, and no more are made until one returns", t.cfg.Name, envelope.ErrUnavailable)
}

// unavailable wraps the cause so that callers see the sentinel that fits; nil: an attempt is under way.
func (t *Token) unavailable(cause error) error {
	if cause == nil {
		return fmt.Errorf("token %s: %w: it is being connected", t.cfg.Name, envelope.ErrUnavailable)
	}
	return fmt.Errorf("token %s: %w", t.cfg.Name, asUnavailable(cause))
}

// ready returns the present generation. While one is being made or looked into for the first time it waits;
// after an attempt that failed it fails at once.
func (t *Token) ready(ctx context.Context) (*generation, error) {
	return t.readyFor(ctx, envelope.KeyID{})
}

// readyFor is ready for an operation with the key: it waits too while the key is looked into, and fails while it is
// suspended. A zero id stands for no key.
func (t *Token) readyFor(ctx context.Context, id envelope.KeyID) (*generation, error) {
	for {
		if t.circuitOpen() {
			return nil, t.hangs()
		}
		t.mu.Lock()
		gen, suspected, suspended, cause, changed := t.gen, t.isSuspected(id), t.suspended[id], t.cause, t.changed
		t.mu.Unlock()
		switch {
		case gen != nil && !suspected && suspended != nil:
			return nil, t.keySuspended(id, suspended.err)
		case gen != nil && !suspected:
			return gen, nil
		case gen == nil && cause != nil:
			return nil, t.unavailable(cause)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, t.outOfTime(ctx)
		}
	}
}

// settled reports whether ready would give a generation at once, and no key is being looked into.
func (t *Token) settled() bool {
	if t.circuitOpen() {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.gen != nil && len(t.suspects) == 0
}

// change calls f, which changes the state, with mu held, and tells all who wait for a change.
func (t *Token) change(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f()
	close(t.changed)
	t.changed = make(chan struct{})
}

// wakeUp has the supervisor look now, and not at its next check.
func (t *Token) wakeUp() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// circuitOpen reports whether calls are refused because others hang: half of the sessions do, or some do and nothing has
// succeeded since. The supervisor closes it again by a check of its own, or with a successor.
func (t *Token) circuitOpen() bool {
	t.mu.Lock()
	gen, forgiven := t.gen, t.forgiven
	t.mu.Unlock()
	return t.tooManyHang(gen, forgiven)
}

// hangsAfter is how long a call that no one waits for any more takes until it counts as one that hangs, and not as one
// whose caller had little time: a little less than callTimeout, at which callers are answered.
func (t *Token) hangsAfter() time.Duration { return t.cfg.CallTimeout * 9 / 10 }

func (t *Token) tooManyHang(gen *generation, forgiven int) bool {
	if gen == nil {
		return false
	}
	hanging, since := gen.worker.Hanging(t.hangsAfter())
	if hanging == 0 {
		return false
	}
	// Forgiven or not, when every session hangs there is none to work with.
	return hanging >= min(max(1, t.cfg.MaxSessions/2)+forgiven, t.cfg.MaxSessions) || t.lastOK.Load() < since.UnixNano()
}

// Nonces is how many random nonces this process has used with each key on this token. It asks nobody.
func (t *Token) Nonces() map[envelope.KeyID]uint64 { return t.nonces.All() }
