// Package latch sees to it that a PIN which a token refused is never tried again: tokens lock for good after
// a few wrong ones, and a crash loop under kubelet would try them all within a minute. What is remembered is
// which state of which PIN file met which token, in a file of stateDir, so that it outlives the process and
// holds in every process that uses the folder. Nothing in it is derived from the PIN.
package latch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/internal/atomicfile"
	"github.com/hsm-kms/hsm-kms/internal/filelock"
)

// ErrStands: an earlier attempt with this very PIN file did not succeed, and no other is made.
var ErrStands = errors.New("this PIN file was tried on this token before, without success")

// ErrState: stateDir cannot be used, so no attempt may be made.
var ErrState = errors.New("the PIN latch cannot be kept")

// Outcome is what became of a login.
type Outcome int

const (
	// Succeeded: the latch is removed.
	Succeeded Outcome = iota
	// Refused: the token said that the PIN is wrong, expired or locked. The latch stands until the file changes.
	Refused
	// Undecided: the attempt failed for another cause and did not count. The latch is removed.
	Undecided
	// Unseen: nobody saw what became of it, as when this process dies in it. The latch stays as it is.
	Unseen
)

// maxRecord bounds the latch file in bytes.
const maxRecord = 4096

// Latch keeps the latch files of one folder. Safe for concurrent use, also between processes.
type Latch struct{ dir string }

// New returns the latch of the folder stateDir, which must exist when an attempt is made.
func New(stateDir string) *Latch { return &Latch{dir: stateDir} }

// record is the latch file. It is written before C_Login with Tried "unknown", so that a process that dies in
// the call leaves it behind.
type record struct {
	Token       string           `json:"token"` // what names the token: serial, label, maker, model
	PINFile     pinfile.Identity `json:"pinFile"`
	Tried       string           `json:"tried"` // "unknown" or "refused"
	Interrupted int              `json:"interrupted"`
	Time        time.Time        `json:"time"`
}

const (
	triedUnknown = "unknown"
	triedRefused = "refused"
)

// Attempt makes one login under the latch's lock. clean tells that the token itself says that no login has
// failed since the last success (CKF_USER_PIN_COUNT_LOW clear): only then is an attempt whose outcome nobody
// saw, because the process died or was stopped in it, made again, and only once.
//
// Errors: ErrStands, ErrState, ctx's error when another process holds the lock, or what login returned.
func (l *Latch) Attempt(ctx context.Context, token string, file pinfile.Identity, clean bool, login func() (Outcome, error)) error {
	unlock, err := l.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	path := l.path(token, file)
	last, err := l.find(token, file)
	if err != nil {
		return err
	}
	next := record{Token: token, PINFile: file, Tried: triedUnknown, Time: time.Now().UTC()}
	if last != nil {
		if err := last.forbids(clean); err != nil {
			return err
		}
		next.Interrupted = last.Interrupted + 1
	}
	if err := write(path, next); err != nil {
		return err
	}
	outcome, loginErr := login()
	switch outcome {
	case Unseen:
		return loginErr
	case Refused:
		next.Tried = triedRefused
		return errors.Join(loginErr, write(path, next))
	default:
		if err := os.Remove(path); err != nil {
			return errors.Join(loginErr, fmt.Errorf("%w: removing the latch: %w", ErrState, err))
		}
		return loginErr
	}
}

// Standing tells, without any attempt, whether one with this file on this token would be refused here.
func (l *Latch) Standing(token string, file pinfile.Identity, clean bool) error {
	last, err := l.find(token, file)
	if err != nil || last == nil {
		return err
	}
	return last.forbids(clean)
}

// find returns the latch that stands for this file on this token; nil: none does. It is looked for under every path
// that the file may have been named by. One that cannot be understood counts only at this file's own place.
func (l *Latch) find(token string, file pinfile.Identity) (*record, error) {
	own, err := read(l.path(token, file))
	if err != nil || own.speaksOf(token, file) {
		return own, err
	}
	paths, err := filepath.Glob(filepath.Join(l.dir, "pin-latch-*.json"))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	for _, path := range paths {
		if other, err := read(path); err == nil && other.speaksOf(token, file) {
			return other, nil
		}
	}
	return nil, nil
}

func (r *record) speaksOf(token string, file pinfile.Identity) bool {
	return r != nil && r.Token == token && r.PINFile.Is(file)
}

func (r *record) forbids(clean bool) error {
	if r.Tried == triedUnknown && r.Interrupted == 0 && clean {
		return nil
	}
	return fmt.Errorf("%w (outcome %s, at %s)", ErrStands, r.Tried, r.Time.Format(time.RFC3339))
}

// path is the latch file of a token and a PIN file. Copies of a token may have one serial and one label, and a login
// that succeeds on one with its own PIN file must not lift the latch of the other. The name is a hash because a serial
// or label may hold any byte.
func (l *Latch) path(token string, file pinfile.Identity) string {
	sum := sha256.Sum256([]byte(token + "\x00" + file.Name()))
	return filepath.Join(l.dir, "pin-latch-"+hex.EncodeToString(sum[:8])+".json")
}

// lock takes the folder's lock for the time of one attempt.
func (l *Latch) lock(ctx context.Context) (unlock func(), err error) {
	lock, err := filelock.Wait(ctx, filepath.Join(l.dir, "pin-latch.lock"))
	switch {
	case errors.Is(err, filelock.ErrHeld):
		return nil, fmt.Errorf("waiting for another process's login: %w", ctx.Err())
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	return func() { _ = lock.Unlock() }, nil
}

// read returns nil when there is no latch. One that cannot be understood stands for every PIN file: it may be
// the only trace of a refused PIN.
func read(path string) (*record, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0) // a FIFO in its place must not hang the login
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	var r record
	if len(b) > maxRecord || json.Unmarshal(b, &r) != nil || r.Tried != triedUnknown && r.Tried != triedRefused {
		return nil, fmt.Errorf("%w: %s is not a latch of ours: see that the PIN is right, then remove it", ErrState, path)
	}
	return &r, nil
}

// write puts the record on disk, whole or not at all, before it returns.
func write(path string, r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	if err := atomicfile.WriteState(path, append(b, '\n')); err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	return nil
}
