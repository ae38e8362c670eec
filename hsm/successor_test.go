package hsm

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

var errOfTest = errors.New("the test says so")

// elsewhere is a key of the ring that the token does not hold.
var elsewhere = envelope.KeyID{Ring: "ring", Version: "elsewhere"}

// slowly has the library of every worker but the first take a second to start.
func slowly(c fakeCall) fakeFault {
	if c.function == "C_Initialize" && c.worker > 1 {
		return fakeFault{takes: time.Second}
	}
	return fakeFault{}
}

func (r *rig) wantWorkers(running, started int) {
	r.t.Helper()
	r.hsm.mu.Lock()
	defer r.hsm.mu.Unlock()
	if len(r.hsm.running) != running || len(r.hsm.began) != started {
		r.t.Errorf("%d workers run and %d were started, want %d and %d", len(r.hsm.running), len(r.hsm.began), running, started)
	}
}

// isClosed reports whether c is closed within the time.
func isClosed(c <-chan struct{}, within time.Duration) bool {
	select {
	case <-c:
		return true
	case <-time.After(within):
		return false
	}
}

// A connection that is given up while its successor is made does not leave its worker behind.
func TestGivenUpWhileSuccessorIsMade(t *testing.T) {
	t.Parallel()
	inBubble(t, 2, nil, func(r *rig) {
		r.connect()
		r.hsm.set(slowly)
		looked := r.token.Seek(elsewhere)
		time.Sleep(500 * time.Millisecond)
		r.token.Distrust(errOfTest)
		if !isClosed(looked, 5*time.Second) {
			r.t.Error("the search for a key does not end")
		}
		time.Sleep(5 * time.Second)
		r.wantWorkers(1, 2)
	})
}

// A connection in the worker that did not show a key does not make the key unknown: another worker does.
func TestSearchOutlastsConnection(t *testing.T) {
	t.Parallel()
	inBubble(t, 2, nil, func(r *rig) {
		r.connect()
		r.token.mu.Lock()
		r.token.suspects[envelope.KeyID{}] = suspicion{err: errOfTest, sure: true}
		r.token.mu.Unlock()
		if looked := r.token.Seek(elsewhere); !isClosed(looked, 5*time.Second) {
			r.t.Fatal("the search for a key does not end")
		}
		time.Sleep(5 * time.Second)
		r.wantWorkers(1, 2)
	})
}

// While a replacement must wait, a search for a key does not wait with it.
func TestSearchBetweenReplacements(t *testing.T) {
	t.Parallel()
	inBubble(t, 2, nil, func(r *rig) {
		r.connect()
		for range 4 {
			r.token.mu.Lock()
			gen := r.token.gen
			r.token.mu.Unlock()
			r.token.requestSwap(gen, "the test says so")
			time.Sleep(40 * time.Second)
		}
		if looked := r.token.Seek(elsewhere); !isClosed(looked, 2*time.Second) {
			r.t.Error("a search waits for a replacement that must wait")
		}
	})
}

// A key that was not there ten minutes ago is sought again where nothing else would find it.
func TestUnknownKeyIsSoughtAgain(t *testing.T) {
	t.Parallel()
	for _, how := range []Swap{SwapOverlap, SwapStopFirst} {
		t.Run(string(how), func(t *testing.T) {
			t.Parallel()
			inBubble(t, 2, func(cfg *TokenConfig, _ *fakeHSM) { cfg.Swap = how }, func(r *rig) {
				r.connect()
				if looked := r.token.Seek(elsewhere); !isClosed(looked, 5*time.Second) {
					r.t.Fatal("the search for a key does not end")
				}
				if r.token.Seek(elsewhere) != nil {
					r.t.Error("it is sought again at once")
				}
				time.Sleep(seekInterval + time.Minute)
				again, started := r.token.Seek(elsewhere) != nil, len(r.hsm.starts())
				if want := how == SwapStopFirst; again != want || !again && started != 3 {
					r.t.Errorf("after ten minutes it is sought again: %t; %d workers were started", again, started)
				}
			})
		})
	}
}

// Comparing views spends no login of the few that the attempt guard allows when logins hang.
func TestComparisonSparesLogins(t *testing.T) {
	t.Parallel()
	inBubble(t, 2, nil, func(r *rig) {
		r.connect()
		r.hsm.set(func(c fakeCall) fakeFault {
			if c.function == "C_Login" {
				return fakeFault{hangs: make(chan struct{})}
			}
			return fakeFault{}
		})
		time.Sleep(6 * time.Hour)
		if n := r.logins(); n > 2 {
			r.t.Errorf("%d logins, want the first and one that hangs", n)
		}
		if err := r.encrypt(); err != nil {
			r.t.Error(err)
		}
		r.hsm.set(nil)
		r.token.requireNewWorker()
		r.token.Distrust(errOfTest)
		time.Sleep(10 * time.Second)
		if err := r.encrypt(); err != nil {
			r.t.Errorf("logins are good again: %v", err)
		}
	})
}

// One call of a reading that fails costs no key, also where the token has one session to read with.
func TestReadingSurvivesOneFailure(t *testing.T) {
	t.Parallel()
	failOnce := func(function string, rv p11.RV) func(fakeCall) fakeFault {
		var failed atomic.Bool
		return func(c fakeCall) fakeFault {
			if c.function == function && failed.CompareAndSwap(false, true) {
				return fakeFault{rv: rv}
			}
			return fakeFault{}
		}
	}
	served := func(r *rig) {
		r.t.Helper()
		keys, err := r.set.Keys(r.ctx)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, key := range keys {
			if key.Refused != "" {
				r.t.Errorf("%s is refused: %s", key.ID, key.Refused)
			}
		}
		if suspended := r.token.Suspended(); len(keys) != len(r.keys) || suspended != nil {
			r.t.Errorf("%d keys, and suspended: %v", len(keys), suspended)
		}
	}
	for _, rv := range []p11.RV{pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_SESSION_HANDLE_INVALID} {
		for _, n := range []int{1, 6} {
			inBubble(t, n, nil, func(r *rig) {
				r.connect()
				r.hsm.set(failOnce("C_GetAttributeValue", rv))
				served(r)
				r.wantWorkers(1, 1)
			})
			for _, function := range []string{"C_GetAttributeValue", "C_Encrypt"} {
				inBubble(t, n, func(_ *TokenConfig, hsm *fakeHSM) { hsm.meets = failOnce(function, rv) }, func(r *rig) {
					for _, err := range r.set.Connected(r.ctx) {
						if err != nil {
							r.t.Fatal(err)
						}
					}
					served(r)
					r.wantWorkers(1, 1)
				})
			}
		}
	}
}

// A key counts as shown for the first time if its name was read and it can be served.
func TestShowsMore(t *testing.T) {
	t.Parallel()
	mute := func() *table { // its second object says nothing of itself
		shown := ringOf("a")
		shown.byHandle[2] = &heldKey{handle: 2}
		shown.byHandle[2].refuse("mute")
		shown.keys = append(shown.keys, shown.byHandle[2].key)
		return shown
	}
	for name, c := range map[string]struct {
		before, after func() *table
		more, live    bool
	}{
		"the same":      {func() *table { return ringOf("a", "b") }, func() *table { return ringOf("a", "b") }, false, false},
		"another key":   {func() *table { return ringOf("a") }, func() *table { return ringOf("a", "b") }, true, true},
		"it grows mute": {func() *table { return ringOf("a", "b") }, mute, false, false},
		"it speaks":     {mute, func() *table { return ringOf("a", "b") }, true, false},
	} {
		before, after := &generation{}, &generation{}
		before.table.Store(c.before())
		after.table.Store(c.after())
		token := &Token{gen: before, shown: c.before()}
		if got := token.showsMore(after); got != c.more {
			t.Errorf("%s: shows more: %t", name, got)
		}
		token.noteShown(before, c.before(), c.after())
		if got := token.swap.live; got != c.live {
			t.Errorf("%s: live: %t", name, got)
		}
	}
}

// A key that was made after the connection, and cannot be used by the next one, is suspended, not refused.
func TestNewKeyOutlastsConnection(t *testing.T) {
	t.Parallel()
	inBubble(t, 2, nil, func(r *rig) {
		r.connect()
		id, err := envelope.NewCKAID(time.Now())
		if err != nil {
			r.t.Fatal(err)
		}
		added := r.hsm.addKey("ring", id)
		if keys, err := r.set.Keys(r.ctx); err != nil || len(keys) != 3 {
			r.t.Fatalf("%v, %v", keys, err)
		}
		r.hsm.set(func(c fakeCall) fakeFault {
			if c.key == added && c.function != "C_GetAttributeValue" {
				return fakeFault{rv: pkcs11.CKR_DEVICE_ERROR}
			}
			return fakeFault{}
		})
		r.token.Distrust(errOfTest)
		time.Sleep(500 * time.Millisecond)
		if n := len(r.token.Suspended()); n != 1 {
			r.t.Errorf("%d keys are suspended", n)
		}
	})
}

// A reading that is under way when the worker is replaced is made in the next one: it does not fail, nor show the old view.
func TestReadingDuringReplacement(t *testing.T) {
	t.Parallel()
	inBubble(t, 2, nil, func(r *rig) {
		r.connect()
		r.hsm.set(func(c fakeCall) fakeFault {
			if c.function == "C_FindObjects" && c.worker == 1 {
				return fakeFault{takes: time.Second}
			}
			return fakeFault{}
		})
		time.AfterFunc(500*time.Millisecond, func() { r.token.Seek(elsewhere) })
		if keys, err := r.set.Keys(r.ctx); err != nil || len(keys) != 2 {
			r.t.Errorf("%d keys, %v", len(keys), err)
		}
		time.Sleep(5 * time.Second)
		r.wantWorkers(1, 2)
	})
}

// A reading of the ring's cluster whose worker ends is made in the next one.
func TestBindingInTheNextWorker(t *testing.T) {
	t.Parallel()
	inBubble(t, 2, nil, func(r *rig) {
		r.connect()
		r.hsm.set(func(c fakeCall) fakeFault { return fakeFault{dies: c.worker == 1} })
		for _, b := range r.set.Bindings(r.ctx) {
			if b.Err != nil || b.Cluster != "" {
				r.t.Errorf("%+v", b)
			}
		}
		r.wantWorkers(1, 2)
	})
}

// Where a library has shown a new key by itself, no other worker is connected to compare what it shows.
func TestLiveLibrary(t *testing.T) {
	t.Parallel()
	for _, live := range []bool{true, false} {
		inBubble(t, 2, nil, func(r *rig) {
			r.connect()
			if live {
				id, err := envelope.NewCKAID(time.Now())
				if err != nil {
					r.t.Fatal(err)
				}
				r.hsm.addKey("ring", id)
			}
			if _, err := r.set.Keys(r.ctx); err != nil {
				r.t.Fatal(err)
			}
			time.Sleep(3 * defaultViewAge)
			if n := len(r.hsm.starts()); live != (n == 1) {
				r.t.Errorf("live %t: %d workers were started", live, n)
			}
			if n := r.set.Generation(); n != 1 {
				r.t.Errorf("live %t: generation %d", live, n)
			}
		})
	}
}
