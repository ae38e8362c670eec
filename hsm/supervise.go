package hsm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// The pauses between attempts to connect: an HSM that is back is used within seconds, and one that is away is
// not flooded by every node at once (jitter).
const (
	firstPause = 50 * time.Millisecond
	longPause  = 3 * time.Second
	tick       = time.Second // how often a connected token looks for hanging calls; no HSM call
	// A connection that ends sooner than shortLife is one of a row; after manyShort in a row each is followed by a pause,
	// or a token that connects and then fails would be logged in to as fast as it answers, for ever.
	shortLife = 250 * time.Millisecond
	manyShort = 100
)

// defaultNeighbourPause is Config.NeighbourPause where it is 0.
const defaultNeighbourPause = time.Minute

// run keeps the token connected until ctx ends. It alone makes and drops generations, but for a
// re-initialisation of the module, which drops those of all its tokens.
func (t *Token) run(ctx context.Context) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	pause, anew, short := firstPause, false, 0
	for ctx.Err() == nil {
		if age, connected := t.connectedFor(); connected {
			if age > shortLife {
				short = 0
			}
			if short < manyShort {
				pause = firstPause
			}
			anew = false
			select {
			case <-ctx.Done():
				return
			case <-t.wake:
			case <-ticker.C:
			}
			t.lookInto(ctx)
			if age, still := t.connectedFor(); !still && age <= shortLife {
				short++
			}
			if short >= manyShort && !t.connected() {
				pause = rest(ctx, pause)
			}
			continue
		}
		err := t.attempt(ctx, anew)
		if err == nil {
			continue
		}
		anew = t.needsInit(err)
		if errors.Is(err, errVanished) && t.maySpoil() {
			continue // believed or not by what a fresh module shows
		}
		pause = rest(ctx, pause)
	}
}

// rest waits for about the pause, and returns the next one.
func rest(ctx context.Context, pause time.Duration) time.Duration {
	select {
	case <-ctx.Done():
	case <-time.After(pause/2 + rand.N(pause)):
	}
	return min(2*pause, longPause)
}

// connectedFor tells whether there is a connection, and how long ago the last one was made.
func (t *Token) connectedFor() (age time.Duration, connected bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Since(t.since), t.gen != nil
}

func (t *Token) connected() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.gen != nil
}

// needsInit tells whether the module must be initialised anew before the next attempt. A refused PIN or a call
// that hangs is not cured by it.
func (t *Token) needsInit(err error) bool {
	if hasRV(err, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED) {
		t.mod.lost.Store(true)
	}
	return !errors.Is(err, envelope.ErrPINRefused) && !errors.Is(err, ErrConfiguration) && !isAway(err)
}

// maySpoil tells whether the module may be initialised anew now, as far as its other tokens are concerned: they lose
// their connections. One whose attempt is under way counts as sound, since the last re-initialisation may be why.
func (t *Token) maySpoil() bool {
	if time.Since(t.mod.initializedAt()) >= t.common.NeighbourPause || t.mod.lost.Load() {
		return true
	}
	for _, other := range t.mod.tokens {
		if other != t && other.sound() {
			return false
		}
	}
	return true
}

func (t *Token) sound() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.gen != nil || t.cause == nil
}

// attempt connects once; anew: after the module was initialised anew, if its other tokens allow that now. One attempt
// at a time in a module: while one hangs, the others fail, so that nobody waits for them.
func (t *Token) attempt(ctx context.Context, anew bool) error {
	limited, cancel := context.WithTimeout(ctx, t.cfg.CallTimeout)
	defer cancel()
	if err := t.mod.lock(limited); err != nil {
		if ctx.Err() == nil {
			err = fmt.Errorf("waiting while another attempt to connect is under way in module %s: %w", t.mod.path, errAbandoned)
			t.failedAttempt(err)
			t.noteTried()
		}
		return err
	}
	anew = (anew || t.isUnclean()) && t.maySpoil()
	err := t.onControl(ctx, "connecting", t.mod.unlock, func(api p11.API, c *call) error {
		if t.connected() {
			return nil // an attempt that was given up on has succeeded meanwhile
		}
		// An attempt that outlives its caller still ends by itself.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.cfg.CallTimeout)
		defer cancel()
		if anew {
			if t.mod.anyHangs() {
				return t.mod.held() // the tokens that work keep their connections
			}
			if err := t.mod.finalize(ctx, c, api, "its module is initialised anew"); err != nil {
				return err
			}
		}
		gen, err := t.connect(ctx, api, anew)
		if err != nil {
			return err
		}
		t.publish(gen)
		return nil
	})
	if err != nil {
		t.failedAttempt(err)
	}
	t.noteTried()
	return err
}

// publish makes gen the token's connection.
func (t *Token) publish(gen *generation) {
	t.lastOK.Store(time.Now().UnixNano())
	t.change(func() {
		t.number++
		gen.number = t.number
		t.gen, t.suspect, t.cause, t.since = gen, nil, nil, time.Now()
		t.hadKeys = len(gen.table.Load().byID) > 0
		t.restorePermits()
		t.said.connected(t.log, gen.number, len(gen.table.Load().keys))
	})
}

// failedAttempt keeps the cause and says it once: an outage of an hour is not ten thousand lines.
func (t *Token) failedAttempt(err error) {
	t.change(func() {
		if t.gen != nil {
			return // an abandoned attempt succeeded after all
		}
		t.cause = err
		t.said.failed(t.log, err)
	})
}

func (t *Token) noteTried() {
	select {
	case <-t.tried:
	default:
		close(t.tried)
	}
}

func (t *Token) hadKeysBefore() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.hadKeys
}
