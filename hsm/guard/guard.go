// Package guard decides whether a PIN may be tried on a token. Tokens lock for good after a few wrong PINs, and a crash
// loop under kubelet would try them all within a minute.
//
// The outcome of earlier attempts is kept in a file of stateDir for each token, so that it outlives the process and holds in
// every process that uses the folder. A PIN is known there by a tag of 20 bits, under a random key that is in the same
// file: enough to know the same bytes again, whatever file they are in.
//
//	outcome of an attempt   the next one with the same PIN
//	succeeded               at once
//	refused                 never, until a person clears it
//	locked, expired         when the token's flags let it, after 30 s, 1 min, 2 min ... 10 min
//	unknown                 once, at once; then only a PIN that has logged in to this token before, after 2 min, 10 min and
//	                        1 h, three times within 24 hours; never while the token counts a failed login
//	another failure         at once, twice; then after 2 s, 4 s ... 30 s. At a PIN pad after 30 s, 1 min, 2 min ... 10 min
//
// It depends on filelock, atomicfile and ownedfile. Every method holds the lock of the token's file, so goroutines and processes
// may share one.
package guard

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/internal/filelock"
)

var (
	// ErrStands: an earlier attempt with this PIN stands against another one, until a person acts.
	ErrStands = errors.New("this PIN was tried on this token before, without success")
	// ErrLocked: the token said that its PIN is locked, and it is too early to look again.
	ErrLocked = errors.New("at the last attempt the token said that its PIN is locked")
	// ErrExpired: the token said that the PIN has expired, and it is too early to look again.
	ErrExpired = errors.New("at the last attempt the token said that the PIN has expired")
	// ErrPaused: the last attempts failed for causes that are not the PIN, and it is too early for another.
	ErrPaused = errors.New("the next login is tried later, because the last ones failed")
	// ErrState: stateDir cannot be used, so no attempt may be made.
	ErrState = errors.New("the record of PIN attempts cannot be kept")
)

// Outcome is what became of a login.
type Outcome int

const (
	// Succeeded: the PIN is right.
	Succeeded Outcome = iota
	// Refused: the token said that the PIN is wrong.
	Refused
	// Locked: the token said that its PIN is locked.
	Locked
	// Expired: the token said that the PIN has expired.
	Expired
	// Undecided: the attempt failed for another cause and did not count.
	Undecided
	// NotTried: the PIN did not reach the token.
	NotTried
	// Unseen: nobody saw what became of it, as when this process dies in it.
	Unseen
)

// Token is what a PIN is tried on.
type Token struct {
	Name        string // of the module and the token in it
	Clean       bool   // the token says that no login has failed since the last success (CKF_USER_PIN_COUNT_LOW is clear)
	Prompts     bool   // each attempt asks a person for the PIN, at a PIN pad
	ToBeChanged bool   // the token says that the PIN must be changed first (CKF_USER_PIN_TO_BE_CHANGED)
}

// TagOf computes a PIN's tag under a key. See pinfile.Tag.
type TagOf func(key []byte) (uint32, error)

// Guard keeps the records of one folder. Safe for concurrent use, also between processes.
type Guard struct {
	dir string
	now func() time.Time
}

// New returns the guard of the folder stateDir, which must exist when an attempt is made. now is the clock; nil: time.Now.
func New(stateDir string, now func() time.Time) *Guard {
	if now == nil {
		now = time.Now
	}
	return &Guard{stateDir, now}
}

// Attempt makes one login, if it may be made, under the lock of the token's record. The attempt is on the disk before login
// is called, so that a process that dies in it is known to have made one.
//
// Errors: those of this package, of tagOf, ctx's when another process holds the lock, or what login returned.
func (g *Guard) Attempt(ctx context.Context, token Token, tagOf TagOf, login func() (Outcome, error)) error {
	unlock, err := g.lock(ctx, token)
	if err != nil {
		return err
	}
	defer unlock()
	f, err := g.openOrMake(token)
	if errors.Is(err, unix.ENOSPC) {
		return g.attemptOnFullDisk(token, login)
	}
	if err != nil {
		return err
	}
	defer f.close()
	tag, err := tagOf(f.record.Key)
	if err != nil {
		return err
	}
	before := f.record.find(tag)
	if err := before.allows(token, g.now()); err != nil {
		return err
	}
	if err := f.put(before.begun(g.now())); err != nil {
		return err
	}
	outcome, loginErr := login()
	if outcome == Unseen {
		return loginErr
	}
	err = f.put(before.ended(outcome, g.now()))
	if err != nil && outcome == Succeeded {
		err = os.Remove(f.path) // nothing stands against this PIN
	}
	return errors.Join(loginErr, err)
}

// attemptOnFullDisk makes a login when there is no record, and no space for one. An empty file takes none: while it is
// there, no other attempt is made.
func (g *Guard) attemptOnFullDisk(token Token, login func() (Outcome, error)) error {
	if !token.Clean {
		return fmt.Errorf("%w: the disk is full, and the token counts a failed login", ErrState)
	}
	path := g.path(token)
	if err := makeEmpty(path); err != nil {
		return err
	}
	outcome, err := login()
	if outcome == Succeeded || outcome == Undecided || outcome == NotTried {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// Standing reports, without any attempt, what stands against one; nil: nothing.
func (g *Guard) Standing(token Token, tagOf TagOf) error {
	f, err := g.open(token)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.close()
	tag, err := tagOf(f.record.Key)
	if err != nil {
		return err
	}
	return f.record.find(tag).allows(token, g.now())
}

// Clear removes what stands against a PIN on a token, also a record that cannot be understood, so that one more attempt is
// made. Only a person who knows that the PIN is right may ask for it. ctx bounds the wait for another process's login.
func (g *Guard) Clear(ctx context.Context, token Token, tagOf TagOf) error {
	unlock, err := g.lock(ctx, token)
	if err != nil {
		return err
	}
	defer unlock()
	f, err := g.open(token)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		if err := os.Remove(g.path(token)); err != nil {
			return fmt.Errorf("%w: removing the record: %w", ErrState, err)
		}
		return nil
	}
	defer f.close()
	tag, err := tagOf(f.record.Key)
	if err != nil {
		return err
	}
	return f.put(try{Tag: tag, Proven: f.record.find(tag).Proven})
}

// path is the file of a token's record. The name is a hash because a serial or label may hold any byte.
func (g *Guard) path(token Token) string {
	sum := sha256.Sum256([]byte(token.Name))
	return filepath.Join(g.dir, "pin-attempts-"+hex.EncodeToString(sum[:8]))
}

// lock takes the record's lock for the time of one attempt. A login that hangs on one token must not keep another waiting.
func (g *Guard) lock(ctx context.Context, token Token) (unlock func(), err error) {
	lock, err := filelock.Wait(ctx, g.path(token)+".lock")
	switch {
	case errors.Is(err, filelock.ErrHeld):
		return nil, fmt.Errorf("waiting for another process's login: %w", ctx.Err())
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	return func() { _ = lock.Unlock() }, nil
}
