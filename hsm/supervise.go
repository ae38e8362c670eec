package hsm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/guard"
)

// The pauses between attempts to connect: an HSM that is back is used within seconds, and one that is away is
// not flooded by every node at once (jitter).
const (
	firstPause = 50 * time.Millisecond
	longPause  = 3 * time.Second
	checkEvery = time.Second // how often a connected token looks for hanging calls; no HSM call
	// A connection that ends sooner than shortLife is one of a row; after manyShort in a row each is followed by a pause,
	// or a token that connects and then fails would be logged in to as fast as it answers, forever.
	shortLife = 250 * time.Millisecond
	manyShort = 100
)

// run keeps the token connected until ctx ends. It alone makes and drops connections. While a successor is being made, it
// goes on looking after the connection that still serves.
func (t *Token) run(ctx context.Context) {
	ticker := time.NewTicker(checkEvery)
	defer ticker.Stop()
	var s supervisor
	for ctx.Err() == nil {
		s.begin(ctx, t)
		select {
		case <-ctx.Done():
		case <-t.wake:
			t.verifySuspicions(ctx)
		case <-ticker.C:
			t.verifySuspicions(ctx)
		case err := <-s.attempt:
			s.end(t, err)
		case <-s.rested:
			s.rested = nil
		}
	}
	if s.attempt != nil {
		<-s.attempt
	}
	t.endWorkers()
}

// supervisor is what run knows of the attempts to connect.
type supervisor struct {
	attempt chan error       // the attempt under way gives its outcome here; nil: none is
	rested  <-chan time.Time // nil: an attempt may begin
	pause   time.Duration    // before the next attempt
	fresh   bool             // the next attempt takes a new worker
	short   int              // connections in a row that ended soon

	// Replacements of a connection that still serves, in part.
	replaced     int // since the last long rest
	lastReplaced time.Time
}

// begin starts an attempt if one is needed and may be made now.
func (s *supervisor) begin(ctx context.Context, t *Token) {
	if s.attempt != nil || s.rested != nil {
		return
	}
	age, connected := t.connectedFor()
	kind := noSuccessor
	if connected {
		kind = t.wantsSuccessor()
	}
	switch {
	case connected && kind == noSuccessor:
		if age > shortLife {
			s.short, s.pause = 0, firstPause
		}
		s.fresh = false
		return
	case kind == curesWorker:
		if wait := s.untilReplacement(); wait > 0 {
			if !t.isSeeking() {
				return // the ticker comes back to it
			}
			kind = showsKey // somebody waits for it
			break
		}
		s.replaced++
		s.lastReplaced = time.Now()
	case connected:
	case age <= shortLife && s.pause == firstPause:
		if s.short++; s.short >= manyShort {
			s.rest(firstPause)
			return
		}
	}
	fresh := s.fresh || connected
	s.attempt = make(chan error, 1)
	go func() { s.attempt <- t.attempt(ctx, fresh, kind) }()
}

// end takes the outcome of an attempt.
func (s *supervisor) end(t *Token, err error) {
	s.attempt = nil
	if err == nil {
		s.fresh, s.pause = false, firstPause
		return
	}
	s.fresh = needsFresh(err)
	if errors.Is(err, errVanished) {
		return // believed or not by what a new worker shows
	}
	s.rest(max(s.pause, firstPause))
}

// rest lets about the pause pass before the next attempt, and doubles it.
func (s *supervisor) rest(pause time.Duration) {
	s.rested = time.After(pause/2 + rand.N(pause))
	s.pause = min(2*pause, longPause)
}

// replacePauses are those before replacements of a connection of which calls hang; the last one goes on.
var replacePauses = [...]time.Duration{0, 5 * time.Second, 30 * time.Second, 5 * time.Minute}

// replaceQuiet is how long no replacement may have been needed for the pauses to begin again.
const replaceQuiet = 10 * time.Minute

// untilReplacement is how long the next replacement must wait.
func (s *supervisor) untilReplacement() time.Duration {
	if s.replaced > 0 && time.Since(s.lastReplaced) > replaceQuiet {
		s.replaced = 0
	}
	return time.Until(s.lastReplaced.Add(replacePauses[min(s.replaced, len(replacePauses)-1)]))
}

// connectedFor reports whether there is a connection, and how long ago the last one was made.
func (t *Token) connectedFor() (age time.Duration, connected bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Since(t.since), t.gen != nil
}

// needsFresh reports whether the next attempt must be made in a new worker. No PIN is cured by it, and no pause.
func needsFresh(err error) bool {
	return !envelope.IsPIN(err) && !errors.Is(err, guard.ErrPaused) && !errors.Is(err, ErrConfiguration) && !errors.Is(err, context.Canceled)
}

// attempt connects once; fresh: in a new worker, whatever the present one is like. kind is why a successor is made of a
// connection that serves.
func (t *Token) attempt(ctx context.Context, fresh bool, kind successor) error {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.ConnectTimeout)
	defer cancel()
	slow := time.AfterFunc(t.cfg.CallTimeout, func() { // callers are not kept
		t.failedAttempt(fmt.Errorf("connecting takes longer than callTimeout (%s): %w", t.cfg.CallTimeout, errAbandoned))
	})
	gen, err := t.makeConnection(ctx, fresh)
	if isUnsettled(err) && t.noFailureYet() {
		err = t.lookAgain(ctx, func() error {
			gen, err = t.makeConnection(ctx, true)
			return err
		})
	}
	if err != nil && kind != noSuccessor && t.noteRefused(err) && kind != comparesViews {
		gen, err = t.makeConnection(ctx, true) // which ends the first worker now
	}
	slow.Stop()
	switch {
	case err != nil:
		t.failedAttempt(err)
	case kind == comparesViews && !t.showsMore(gen):
		t.endInBackground(gen.worker, nil)
	default:
		t.publish(gen, kind)
	}
	t.noteView()
	t.noteTried()
	return err
}

// noFailureYet reports whether no attempt has failed since the last connection, if any.
func (t *Token) noFailureYet() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.cause == nil
}

// makeConnection makes a connection in the present worker, or in a new one. A worker that still serves goes on until its
// successor does.
func (t *Token) makeConnection(ctx context.Context, fresh bool) (*generation, error) {
	old := t.worker
	if old != nil && !fresh && !t.needsNewWorker() && !hasEnded(old) {
		return t.connect(ctx, old, false)
	}
	t.mu.Lock()
	present := t.gen
	t.mu.Unlock()
	serves := present != nil && present.worker == old
	if serves && t.stopsFirst() {
		t.drop(present, "its worker is ended before another one is connected")
		serves = false
	}
	if old != nil && !serves {
		t.endInBackground(old, nil)
		t.worker = nil
	}
	if err := t.waitForEnds(ctx); err != nil {
		return nil, err
	}
	w, err := t.startWorker(ctx)
	if err != nil {
		return nil, err
	}
	t.forgetRetired()
	gen, err := t.connect(ctx, w, true)
	switch {
	case !serves:
		t.worker = w
	case err != nil:
		t.endInBackground(w, nil)
	}
	return gen, err
}

// publish makes gen the token's connection; the one before it is dropped, and its worker ended when no operation is under
// way in it any more. That connection may have been dropped already while gen was made; its worker is ended all the same.
func (t *Token) publish(gen *generation, kind successor) {
	t.lastOK.Store(time.Now().UnixNano())
	before := t.worker
	t.worker = gen.worker
	var old *generation
	var unused <-chan struct{}
	var spare int
	t.change(func() {
		old = t.gen
		if old != nil {
			unused = old.end()
			tell := t.dedup.dropped
			if kind == showsKey || kind == comparesViews {
				tell = t.dedup.replaced
			}
			tell(t.log, old.number, t.replacedFor(kind))
		}
		t.number++
		gen.number = t.number
		spare = len(gen.idle) - 1 // those of the reading; an operation may hold one when they are closed
		t.gen, t.cause, t.since = gen, nil, time.Now()
		clear(t.suspects)
		t.swap.why = ""
		shown := gen.table.Load()
		t.shown = shown
		t.suspendFailed(shown)
		if gen.isNew { // another reading in the same worker may show no more than before
			t.endSeek(shown)
		}
		t.hadKeys = len(shown.byID) > 0
		t.dedup.connected(t.log, gen.number, len(shown.keys))
	})
	t.restorePermits()
	if before != nil && before != gen.worker {
		t.endInBackground(before, unused)
	}
	go t.closeSpare(gen, spare)
	go func() { // a worker that dies while nobody asks it is noticed too
		<-gen.worker.Ended()
		if !gen.ended() {
			t.condemned(gen, gen.worker.Why())
		}
	}()
}

// failedAttempt keeps the cause and says it once: an outage of an hour is not ten thousand lines.
func (t *Token) failedAttempt(err error) {
	t.change(func() {
		t.endSeek(nil)
		if t.gen != nil {
			return // the old connection still serves
		}
		t.cause = ofAttempt{err}
		t.dedup.failed(t.log, err)
	})
}

// ofAttempt is an error of an attempt to connect. That its time is up says nothing of the time of the caller who is told.
type ofAttempt struct{ error }

// Is reports whether it wraps target, but for a context's error.
func (e ofAttempt) Is(target error) bool {
	return target != context.DeadlineExceeded && target != context.Canceled && errors.Is(e.error, target)
}

// As is errors.As.
func (e ofAttempt) As(target any) bool { return errors.As(e.error, target) }

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
