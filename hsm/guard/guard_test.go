package guard_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/hsm/guard"
)

var (
	clean = guard.Token{Name: `"serial|label" in "/module.so"`, Clean: true}
	low   = guard.Token{Name: clean.Name}
)

// rig is a guard with a clock of its own, and one PIN.
type rig struct {
	t     *testing.T
	dir   string
	guard *guard.Guard
	now   time.Time
	pin   uint32
	tried int
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, dir: t.TempDir(), now: time.Date(2030, 1, 1, 23, 0, 0, 0, time.UTC), pin: 7}
	r.guard = guard.New(r.dir, func() time.Time { return r.now })
	return r
}

func (r *rig) tag([]byte) (uint32, error) { return r.pin, nil }

// attempt makes one that ends so, and returns what the guard said.
func (r *rig) attempt(token guard.Token, outcome guard.Outcome) error {
	tried := r.tried
	err := r.guard.Attempt(r.t.Context(), token, r.tag, func() (guard.Outcome, error) {
		r.tried++
		return outcome, nil
	})
	if (err == nil) != (r.tried == tried+1) {
		r.t.Errorf("%d attempts, error %v", r.tried-tried, err)
	}
	return err
}

func (r *rig) allowed(token guard.Token, outcome guard.Outcome) {
	r.t.Helper()
	if err := r.attempt(token, outcome); err != nil {
		r.t.Errorf("not allowed: %v", err)
	}
}

func (r *rig) refuses(token guard.Token, want error) {
	r.t.Helper()
	if err := r.attempt(token, guard.Succeeded); !errors.Is(err, want) {
		r.t.Errorf("got %v, want %v", err, want)
	}
	if err := r.guard.Standing(token, r.tag); !errors.Is(err, want) {
		r.t.Errorf("standing: %v, want %v", err, want)
	}
}

// over runs the clock for a time, with an attempt at every step that ends so, and counts those that were made.
func (r *rig) over(d time.Duration, token guard.Token, outcome guard.Outcome) int {
	before := r.tried
	for end, step := r.now.Add(d), max(time.Second, d/1000); r.now.Before(end); r.now = r.now.Add(step) {
		_ = r.attempt(token, outcome)
	}
	return r.tried - before
}

func TestRefusedStands(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.allowed(clean, guard.Refused)
	r.now = r.now.Add(1000 * time.Hour)
	r.refuses(clean, guard.ErrStands)
	r.pin = 8 // another PIN
	r.allowed(low, guard.Succeeded)
	r.pin = 7
	r.refuses(clean, guard.ErrStands)
	if err := r.guard.Clear(t.Context(), clean, r.tag); err != nil {
		t.Fatal(err)
	}
	r.allowed(low, guard.Refused)
	r.refuses(clean, guard.ErrStands)
	other := guard.Token{Name: "another", Clean: true}
	r.allowed(other, guard.Succeeded)
}

// Sixteen PINs are remembered.
func TestManyPINs(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for r.pin = range 40 {
		r.allowed(clean, guard.Refused)
	}
	r.pin = 24
	r.refuses(clean, guard.ErrStands)
}

func TestUnknownOutcome(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.allowed(clean, guard.Unseen)
	r.refuses(low, guard.ErrStands) // the token counts a failed login
	r.allowed(clean, guard.Unseen)
	if n := r.over(48*time.Hour, clean, guard.Unseen); n != 0 {
		t.Errorf("a PIN that has never logged in was tried %d times more", n)
	}
	r.refuses(clean, guard.ErrStands)
}

// A PIN that has logged in is tried five times in a day of hanging logins, however often the program is started again.
func TestUnknownOutcomeOfAPINThatIsKnown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.allowed(clean, guard.Succeeded)
	if n := r.over(2*time.Minute, clean, guard.Unseen); n != 2 {
		t.Errorf("%d attempts in two minutes, want 2", n)
	}
	r.refuses(low, guard.ErrStands)
	if n := r.over(22*time.Hour, clean, guard.Unseen); n != 3 {
		t.Errorf("%d attempts after them, want 3", n)
	}
	r.refuses(clean, guard.ErrStands)
	r.now = r.now.Add(4 * time.Hour)
	r.allowed(clean, guard.Succeeded)
	// After the success the extra attempts that were made go on counting.
	r.allowed(clean, guard.Unseen)
	r.allowed(clean, guard.Unseen)
	if n := r.over(12*time.Hour, clean, guard.Unseen); n != 2 {
		t.Errorf("%d extra attempts, of three within 24 hours one has been made", n)
	}
}

// Two minutes of hanging logins, then a healthy token.
func TestTwoMinutesOfHangingLogins(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.allowed(clean, guard.Succeeded)
	r.over(2*time.Minute, clean, guard.Unseen)
	if n := r.over(3*time.Second, clean, guard.Succeeded); n != 2 {
		t.Errorf("%d attempts in the seconds after it", n) // the first of them heals
	}
}

func TestLockedAndExpired(t *testing.T) {
	t.Parallel()
	for outcome, want := range map[guard.Outcome]error{guard.Locked: guard.ErrLocked, guard.Expired: guard.ErrExpired} {
		r := newRig(t)
		r.allowed(clean, outcome)
		r.refuses(clean, want)
		if n := r.over(time.Hour, low, outcome); n < 6 || n > 10 {
			t.Errorf("%v: %d looks in an hour", want, n)
		}
		r.now = r.now.Add(10 * time.Minute)
		r.allowed(clean, guard.Succeeded)
		r.allowed(clean, guard.Succeeded)
	}
	r := newRig(t)
	r.allowed(clean, guard.Expired)
	r.now = r.now.Add(time.Hour)
	r.refuses(guard.Token{Name: clean.Name, Clean: true, ToBeChanged: true}, guard.ErrExpired)
}

// An HSM that is away for ten minutes, and fails logins without a word about the PIN, gets few of them.
func TestOtherFailures(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if n := r.over(10*time.Minute, clean, guard.Undecided); n < 10 || n > 30 {
		t.Errorf("%d logins in ten minutes", n)
	}
	r.refuses(clean, guard.ErrPaused)
	if n := r.over(30*time.Second, clean, guard.Succeeded); n < 1 {
		t.Error("no login within 30 s")
	}
	r.allowed(clean, guard.NotTried)
	r.allowed(clean, guard.NotTried)
	r.allowed(clean, guard.NotTried)
	r.allowed(clean, guard.Succeeded)
}

// A process that dies in C_Login leaves the attempt behind.
func TestDeathInAttempt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	die := func() {
		defer func() { _ = recover() }()
		_ = r.guard.Attempt(t.Context(), clean, r.tag, func() (guard.Outcome, error) { panic("the process dies here") })
	}
	die()
	r.refuses(low, guard.ErrStands)
	die()
	r.refuses(clean, guard.ErrStands)
}

// A record that was being written when the machine stopped is the one before; one that is not ours stops every attempt.
func TestRecordFailsClosed(t *testing.T) {
	t.Parallel()
	absent := guard.New(filepath.Join(t.TempDir(), "absent"), nil)
	never := func() (guard.Outcome, error) { t.Error("login was tried"); return guard.Succeeded, nil }
	r := newRig(t)
	if err := absent.Attempt(t.Context(), clean, r.tag, never); !errors.Is(err, guard.ErrState) {
		t.Errorf("no folder: %v", err)
	}
	r.allowed(clean, guard.Refused)
	path := r.record()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(whole); at += len(whole) / 2 {
		torn := append([]byte{}, whole...)
		copy(torn[at+20:], "torn")
		r.write(path, torn)
		if err := r.attempt(low, guard.Succeeded); !errors.Is(err, guard.ErrStands) {
			t.Errorf("torn at %d: %v", at, err)
		}
		r.write(path, whole)
	}
	for _, garbage := range []string{"{", strings.Repeat("x", len(whole)), string(whole) + "x", string(whole[:100])} {
		r.write(path, []byte(garbage))
		r.refuses(clean, guard.ErrState)
	}
	if err := r.guard.Clear(t.Context(), clean, r.tag); err != nil {
		t.Fatal(err)
	}
	r.allowed(clean, guard.Succeeded)
}

func (r *rig) record() string {
	r.t.Helper()
	names, err := filepath.Glob(filepath.Join(r.dir, "pin-attempts-*[0-9a-f]"))
	if err != nil || len(names) != 1 {
		r.t.Fatalf("%v, %v", names, err)
	}
	return names[0]
}

func (r *rig) write(path string, data []byte) {
	r.t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// A FIFO where the record should be stops every attempt, and is not waited for.
func TestRecordIsFIFO(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.allowed(clean, guard.Succeeded)
	path := r.record()
	if err := errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.refuses(clean, guard.ErrState)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("it hangs")
	}
}

// One attempt at a time on a token, over all processes that share the folder; another token is not kept waiting.
func TestOneAttemptAtATime(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	inside, leave, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- guard.New(r.dir, nil).Attempt(t.Context(), clean, r.tag, func() (guard.Outcome, error) {
			close(inside)
			<-leave
			return guard.Succeeded, nil
		})
	}()
	<-inside
	ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
	defer cancel()
	err := r.guard.Attempt(ctx, clean, r.tag, func() (guard.Outcome, error) {
		t.Error("two logins at once")
		return guard.Succeeded, nil
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the second: %v", err)
	}
	r.allowed(guard.Token{Name: "another", Clean: true}, guard.Succeeded)
	close(leave)
	if err := <-done; err != nil {
		t.Errorf("the first: %v", err)
	}
}

// A full disk stops no login: a record that is there has its place, and without one an empty file stands for it.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if err := unix.Mount("tmpfs", r.dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(r.dir, unix.MNT_DETACH) })
	r.allowed(clean, guard.Succeeded)
	r.fill()
	r.allowed(clean, guard.Succeeded)
	r.allowed(clean, guard.Refused)
	r.refuses(clean, guard.ErrStands)

	fresh := guard.Token{Name: "fresh", Clean: true}
	r.allowed(fresh, guard.Succeeded)
	r.allowed(fresh, guard.Succeeded)
	if err := r.attempt(guard.Token{Name: "fresh"}, guard.Succeeded); !errors.Is(err, guard.ErrState) {
		t.Errorf("while the token counts a failed login: %v", err)
	}
	r.allowed(fresh, guard.Refused)
	r.refuses(fresh, guard.ErrStands)
	r.pin = 9
	r.refuses(fresh, guard.ErrStands)
	if err := r.guard.Clear(t.Context(), fresh, r.tag); err != nil {
		t.Fatal(err)
	}
	r.allowed(fresh, guard.Succeeded)
}

// fill leaves no space in the folder.
func (r *rig) fill() {
	r.t.Helper()
	file, err := os.Create(filepath.Join(r.dir, "filler"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer file.Close()
	for err == nil {
		_, err = file.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		r.t.Fatal(err)
	}
}
