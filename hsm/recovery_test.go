package hsm

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/hsm/p11/p11test"
	"github.com/hsm-kms/hsm-kms/hsm/worker"
)

// The fake keeps the contract that the library in process and the client of a worker keep.
func TestFakeContract(t *testing.T) {
	t.Parallel()
	hsm := newFakeHSM(t)
	id := []byte("hk1-of-the-contract")
	hsm.addKey("ring", id)
	w, err := hsm.launch(t.Context(), worker.Config{Hook: func(string, p11.RV, time.Duration) {}})
	if err != nil {
		t.Fatal(err)
	}
	p11test.Run(t, p11test.Subject{
		API: w.For(context.Background(), 0), PINFile: pinFile(t, hsm.pin), TokenName: hsm.label, Label: "ring", CKAID: id,
	})
}

func pinFile(t *testing.T, pin string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(path, []byte(pin+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// rig is a token on a fake HSM with keys, under a clock that moves when everybody waits.
type rig struct {
	t     *testing.T
	hsm   *fakeHSM
	set   *Set
	token *Token
	keys  []p11.Object // the newest first
	id    envelope.KeyID
	ctx   context.Context
	begin time.Time
	loads sync.WaitGroup
}

// inBubble runs f on a token with n keys that is being connected.
func inBubble(t *testing.T, n int, change func(cfg *TokenConfig, hsm *fakeHSM), f func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, hsm: newFakeHSM(t), begin: time.Now()}
		for i := range n {
			id, err := envelope.NewCKAID(time.Now().Add(-time.Duration(i+1) * time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			r.keys = append(r.keys, r.hsm.addKey("ring", id))
		}
		cfg := TokenConfig{Name: "hsm-a", Module: "fake", Label: "k8s", PINFile: pinFile(t, r.hsm.pin), MaxSessions: 4, CallTimeout: 2 * time.Second}
		if change != nil {
			change(&cfg, r.hsm)
		}
		r.set = Open(Config{
			Ring: "ring", Profile: envelope.AESGCM, StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler), launch: r.hsm.launch,
		}, []TokenConfig{cfg})
		r.token = r.set.tokens[0]
		defer r.set.Start(t.Context())()
		defer r.loads.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r.ctx = ctx
		f(r)
	})
}

// connect waits for the first connection.
func (r *rig) connect() {
	r.t.Helper()
	for _, err := range r.set.Connected(r.ctx) {
		if err != nil {
			r.t.Fatal(err)
		}
	}
	keys, err := r.set.Keys(r.ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	newest := slices.MaxFunc(keys, func(a, b envelope.Key) int { return a.Activation.Compare(b.Activation) })
	r.id = newest.ID
}

func (r *rig) encrypt() error {
	_, err := r.set.EncryptGCM(r.ctx, r.id, &[envelope.NonceSize]byte{}, []byte("associated"), []byte("a DEK"))
	return err
}

// load encrypts on n goroutines, each with that pause, until stop is called, which reports how many failed.
func (r *rig) load(n int, pause time.Duration) (stop func() (failed, done int64)) {
	var failed, done atomic.Int64
	ctx, cancel := context.WithCancel(r.ctx)
	var running sync.WaitGroup
	for range n {
		r.loads.Add(1)
		running.Go(func() {
			defer r.loads.Done()
			for ctx.Err() == nil {
				if err := r.encrypt(); err != nil {
					failed.Add(1)
				} else {
					done.Add(1)
				}
				time.Sleep(pause)
			}
		})
	}
	return func() (int64, int64) {
		cancel()
		running.Wait()
		return failed.Load(), done.Load()
	}
}

func (r *rig) logins() int {
	r.hsm.mu.Lock()
	defer r.hsm.mu.Unlock()
	return len(r.hsm.logins)
}

// The self-test begins while keys are still read.
func TestSelfTestBesideTheReading(t *testing.T) {
	t.Parallel()
	var block chan struct{}
	inBubble(t, 12, func(_ *TokenConfig, hsm *fakeHSM) {
		block = make(chan struct{})
		hsm.meets = func(c fakeCall) fakeFault {
			if c.function == "C_Encrypt" && c.key == 12 { // the oldest: its fingerprint is the last one taken
				return fakeFault{hangs: block}
			}
			return fakeFault{takes: 20 * time.Millisecond}
		}
	}, func(r *rig) {
		t := r.t
		time.Sleep(5 * time.Second)
		if n := r.hsm.count("C_Encrypt"); n != 12+2 {
			t.Errorf("%d calls of C_Encrypt while the last key is read, want 14: the self-test does not run", n)
		}
		close(block)
		r.connect()
	})
}

// A start with 20 keys on a token that takes 20 ms for a call waits for few of its calls.
func TestStartTime(t *testing.T) {
	t.Parallel()
	inBubble(t, 20, func(cfg *TokenConfig, hsm *fakeHSM) {
		cfg.MaxSessions = 8
		hsm.meets = func(fakeCall) fakeFault { return fakeFault{takes: 40 * time.Millisecond} } // each is two of a module's
	}, func(r *rig) {
		t := r.t
		r.connect()
		if took := time.Since(r.begin); took > time.Second {
			t.Errorf("connected after %s", took)
		}
	})
}

// A worker in which half of the sessions hang is replaced at once, then after 5 s, 30 s and every 5 min; after ten good
// minutes at once again.
func TestPausesBetweenReplacements(t *testing.T) {
	t.Parallel()
	inBubble(t, 1, func(cfg *TokenConfig, _ *fakeHSM) { cfg.MaxSessions = 2 }, func(r *rig) {
		t := r.t
		r.connect()
		hang := func(c fakeCall) fakeFault {
			if c.request {
				return fakeFault{hangs: make(chan struct{})}
			}
			return fakeFault{}
		}
		r.hsm.set(hang)
		stop := r.load(2, time.Second)
		time.Sleep(17 * time.Minute)
		starts := r.hsm.starts()
		want := []time.Duration{0, 5 * time.Second, 30 * time.Second, 5 * time.Minute, 5 * time.Minute, 5 * time.Minute}
		if len(starts) != 1+len(want) {
			t.Fatalf("%d workers in 17 minutes, want %d: %v", len(starts), 1+len(want), starts)
		}
		for i, pause := range want[1:] {
			if gap := starts[i+2].Sub(starts[i+1]); gap < pause || gap > pause+6*time.Second {
				t.Errorf("replacement %d came %s after the one before, want %s", i+2, gap, pause)
			}
		}
		r.hsm.set(nil)
		time.Sleep(replaceQuiet + 6*time.Minute)
		n := len(r.hsm.starts())
		r.hsm.set(hang)
		time.Sleep(10 * time.Second)
		if got := len(r.hsm.starts()); got < n+1 {
			t.Errorf("no replacement within 10 s after ten good minutes")
		}
		r.hsm.set(nil)
		stop()
	})
}

// Every session of a worker hangs: requests are served again as soon as their calls are given up and a successor is connected.
// No check of the worker comes before: it would wait for a session.
func TestEverySessionHangs(t *testing.T) {
	t.Parallel()
	inBubble(t, 1, nil, func(r *rig) {
		t := r.t
		r.connect()
		r.hsm.set(func(c fakeCall) fakeFault {
			if c.request && c.worker == 1 {
				return fakeFault{hangs: make(chan struct{})}
			}
			return fakeFault{}
		})
		begin := time.Now()
		stop := r.load(8, 10*time.Millisecond)
		for r.encrypt() != nil {
			time.Sleep(10 * time.Millisecond)
		}
		if took := time.Since(begin); took > r.token.cfg.CallTimeout+100*time.Millisecond {
			t.Errorf("served again after %s, callTimeout is %s", took, r.token.cfg.CallTimeout)
		}
		stop()
	})
}

// givesBack gives a permit back while hanging calls are counted.
type givesBack struct {
	workerProcess
	release func()
}

func (w givesBack) Hanging(time.Duration) (int, time.Time) {
	w.release()
	return 0, time.Time{}
}

// The only session is at work, and no longer when hanging calls are counted: the check gets it. Before, it gave up, and the
// suspicion that it was for was forgotten.
func TestCheckGetsThePermit(t *testing.T) {
	t.Parallel()
	inBubble(t, 1, func(cfg *TokenConfig, _ *fakeHSM) { cfg.MaxSessions = 1 }, func(r *rig) {
		r.connect()
		if !r.token.tryPermit() {
			r.t.Fatal("the session is at work already")
		}
		if !r.token.permitForCheck(&generation{worker: givesBack{release: r.token.releasePermit}}) {
			r.t.Fatal("no permit, and no call hangs")
		}
		r.token.releasePermit()
	})
}

// Two of four sessions hang: a successor is made, and the others serve until it does, however long that takes.
func TestReplacementCostsNoRequest(t *testing.T) {
	t.Parallel()
	inBubble(t, 1, func(cfg *TokenConfig, _ *fakeHSM) { cfg.ConnectTimeout = 75 * time.Second }, func(r *rig) {
		t := r.t
		r.connect()
		var left atomic.Int32
		left.Store(2)
		r.hsm.set(func(c fakeCall) fakeFault {
			switch {
			case c.request && c.worker == 1 && left.Add(-1) >= 0:
				return fakeFault{hangs: make(chan struct{})}
			case c.function == "C_Initialize":
				return fakeFault{takes: time.Minute}
			}
			return fakeFault{}
		})
		stop := r.load(4, 100*time.Millisecond)
		time.Sleep(3 * time.Minute)
		failed, done := stop()
		if failed > 2+4 || done < 4*1500 { // and who comes just when they are noticed
			t.Errorf("%d requests failed and %d succeeded; only those that hang may fail", failed, done)
		}
		if n := len(r.hsm.starts()); n != 2 {
			t.Errorf("%d workers", n)
		}
		if n := r.logins(); n != 2 {
			t.Errorf("%d logins", n)
		}
		r.hsm.mu.Lock()
		defer r.hsm.mu.Unlock()
		if n := len(r.hsm.running); n != 1 {
			t.Errorf("%d workers run", n)
		}
	})
}

// A library that takes a minute to start is started once.
func TestSlowInitialize(t *testing.T) {
	t.Parallel()
	inBubble(t, 1, func(cfg *TokenConfig, hsm *fakeHSM) {
		cfg.ConnectTimeout = 75 * time.Second
		hsm.meets = func(c fakeCall) fakeFault {
			if c.function == "C_Initialize" {
				return fakeFault{takes: 70 * time.Second}
			}
			return fakeFault{}
		}
	}, func(r *rig) {
		t := r.t
		time.Sleep(3 * time.Second)
		if err := r.encrypt(); !errors.Is(err, envelope.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("while the library starts: %v", err)
		}
		r.connect()
		if took := time.Since(r.begin); took > 72*time.Second || len(r.hsm.starts()) != 1 || r.logins() != 1 {
			t.Errorf("connected after %s, with %d workers and %d logins", took, len(r.hsm.starts()), r.logins())
		}
	})
}

// The time of an attempt to connect is not the caller's.
func TestAttemptOutOfTime(t *testing.T) {
	t.Parallel()
	inBubble(t, 1, func(_ *TokenConfig, hsm *fakeHSM) {
		hsm.meets = func(c fakeCall) fakeFault {
			if c.function == "C_GetAttributeValue" {
				return fakeFault{hangs: make(chan struct{})}
			}
			return fakeFault{}
		}
	}, func(r *rig) {
		t := r.t
		time.Sleep(31 * time.Second) // connectTimeout and one more
		if err := r.token.Problem(); !errors.Is(err, envelope.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after an attempt that took too long: %v", err)
		}
	})
}

// Ten minutes of an outage, of each kind, and how many logins and workers that may cost. The load goes on.
func TestOutageOfTenMinutes(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	never := func() <-chan struct{} { return make(chan struct{}) }
	fail := func(rv p11.RV) func(fakeCall) fakeFault {
		return func(fakeCall) fakeFault { return fakeFault{rv: rv} }
	}
	only := func(function string, fault func() fakeFault) func(fakeCall) fakeFault {
		return func(c fakeCall) fakeFault {
			if c.function == function {
				return fault()
			}
			return fakeFault{}
		}
	}
	for name, tc := range map[string]struct {
		meets           func(fakeCall) fakeFault
		logins, workers int
	}{
		"every call says CKR_DEVICE_REMOVED":        {fail(pkcs11.CKR_DEVICE_REMOVED), 0, 250},
		"every call says CKR_GENERAL_ERROR":         {fail(pkcs11.CKR_GENERAL_ERROR), 0, 250},
		"every call hangs":                          {func(fakeCall) fakeFault { return fakeFault{hangs: never()} }, 0, 25},
		"logins hang":                               {only("C_Login", func() fakeFault { return fakeFault{hangs: never()} }), 4, 4},
		"logins say CKR_GENERAL_ERROR":              {only("C_Login", func() fakeFault { return fakeFault{rv: pkcs11.CKR_GENERAL_ERROR} }), 30, 30},
		"the PIN is refused":                        {only("C_Login", func() fakeFault { return fakeFault{rv: pkcs11.CKR_PIN_INCORRECT} }), 1, 5},
		"the login is good and keys cannot be used": {only("C_Encrypt", func() fakeFault { return fakeFault{rv: pkcs11.CKR_DEVICE_ERROR} }), 250, 250},
		"the library dies in each request":          {func(c fakeCall) fakeFault { return fakeFault{dies: c.request} }, 15, 15},
		"requests hang": {func(c fakeCall) fakeFault {
			if c.request {
				return fakeFault{hangs: never()}
			}
			return fakeFault{}
		}, 15, 6},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, 2, nil, func(r *rig) {
				t := r.t
				r.connect()
				logins, workers := r.logins(), len(r.hsm.starts())
				r.hsm.set(tc.meets)
				r.token.Distrust(errors.New("the test says so"))
				stop := r.load(4, time.Second)
				time.Sleep(10 * time.Minute)
				newLogins, newWorkers := r.logins()-logins, len(r.hsm.starts())-workers
				t.Logf("%d logins, %d workers", newLogins, newWorkers)
				if newLogins > tc.logins {
					t.Errorf("%d logins, want at most %d", newLogins, tc.logins)
				}
				if newWorkers > tc.workers {
					t.Errorf("%d workers, want at most %d", newWorkers, tc.workers)
				}
				r.hsm.mu.Lock()
				n := len(r.hsm.running)
				r.hsm.mu.Unlock()
				if n > 2 {
					t.Errorf("%d workers run", n)
				}
				r.hsm.set(nil)
				stop()
			})
		})
	}
}

// What a connection was made with is given to the first who asks soon; then the token is asked.
func TestFirstReading(t *testing.T) {
	t.Parallel()
	inBubble(t, 3, nil, func(r *rig) {
		t := r.t
		r.connect() // asks once
		if n := r.hsm.count("C_FindObjects"); n != 1 {
			t.Fatalf("%d readings of a connection and the first who asks", n)
		}
		if _, err := r.set.Keys(r.ctx); err != nil || r.hsm.count("C_FindObjects") != 2 {
			t.Fatalf("the second who asks: %v, %d readings", err, r.hsm.count("C_FindObjects"))
		}
	})
	inBubble(t, 3, nil, func(r *rig) {
		t := r.t
		for _, err := range r.set.Connected(r.ctx) {
			if err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(freshReading + time.Millisecond)
		if _, err := r.set.Keys(r.ctx); err != nil || r.hsm.count("C_FindObjects") != 2 {
			t.Fatalf("the first who asks, late: %v, %d readings", err, r.hsm.count("C_FindObjects"))
		}
	})
}

// One key that cannot be used, whatever the token says to it: it is suspended and the others are served, nothing is connected
// again, and the key is served again when it can be used.
func TestSuspension(t *testing.T) {
	t.Parallel()
	for _, rv := range KeyErrors {
		t.Run(rv.String(), func(t *testing.T) {
			t.Parallel()
			inBubble(t, 4, nil, func(r *rig) {
				r.connect()
				good, bad := r.id, r.idOf(r.keys[1])
				r.hsm.set(func(c fakeCall) fakeFault {
					if c.key == r.keys[1] && (c.function == "C_Encrypt" || c.function == "C_Decrypt") {
						return fakeFault{rv: rv}
					}
					return fakeFault{}
				})
				r.id = bad
				if err := r.encrypt(); !errors.Is(err, envelope.ErrUnavailable) || !errors.Is(err, envelope.ErrKeySuspended) {
					r.t.Errorf("encrypting with the bad key: %v", err)
				}
				r.id = good
				if err := r.encrypt(); err != nil {
					r.t.Errorf("encrypting with another: %v", err)
				}
				if keys, err := r.set.Keys(r.ctx); err != nil || len(keys) != len(r.keys) {
					r.t.Errorf("reading the ring: %d keys, %v", len(keys), err)
				}
				if suspended := r.token.Suspended(); len(suspended) != 1 || suspended[bad] == nil {
					r.t.Errorf("suspended: %v", suspended)
				}
				r.hsm.set(nil)
				time.Sleep(3 * firstSuspension)
				r.id = bad
				if err := r.encrypt(); err != nil {
					r.t.Errorf("encrypting with the key that can be used again: %v", err)
				}
				if n := r.set.Generation(); n != 1 {
					r.t.Errorf("generation %d", n)
				}
				r.wantWorkers(1, 1)
			})
		})
	}
}

// idOf is the key_id of an object.
func (r *rig) idOf(object p11.Object) envelope.KeyID {
	r.t.Helper()
	keys, err := r.set.Keys(r.ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	r.hsm.mu.Lock()
	defer r.hsm.mu.Unlock()
	i := slices.IndexFunc(keys, func(k envelope.Key) bool {
		return slices.Equal(k.CKAID, r.hsm.keys[object].attributes[pkcs11.CKA_ID])
	})
	return keys[i].ID
}
