package hsm_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/hsm/latch"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// A wrong PIN is tried once, in this process and in the next ones, until the file changes; then the plugin
// heals without a restart.
func TestWrongPINIsTriedOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	right, err := os.ReadFile(b.token.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	b.writePIN([]byte("9999999\n"))
	before := b.module.Calls("C_Login")
	for restart := range 5 { // a crash loop under kubelet
		b.run()
		problem := b.set.Connected(b.within(10 * time.Second))[0]
		if !errors.Is(problem, envelope.ErrPINRefused) || hint.Of(problem) == "" {
			t.Fatalf("start %d: %v (hint %q)", restart, problem, hint.Of(problem))
		}
		if strings.Contains(problem.Error(), "9999999") {
			t.Fatal("the PIN is in the error")
		}
		if restart < 4 {
			b.stop()
		}
	}
	if n := b.module.Calls("C_Login") - before; n != 1 {
		t.Errorf("the wrong PIN was tried %d times over five starts", n)
	}
	if _, err := hsm.Generate(t.Context(), b.common, b.cfg, mustID(t)); !errors.Is(err, envelope.ErrPINRefused) {
		t.Errorf("a command with the latched PIN: %v", err)
	}
	if n := b.module.Calls("C_Login") - before; n != 1 {
		t.Errorf("a command tried the latched PIN: %d logins", n)
	}
	b.writePIN(right)
	b.eventually(10*time.Second, func() error {
		return errors.Join(b.ring.Refresh(t.Context()), b.ring.Exercise(t.Context()))
	})
	latches, err := filepath.Glob(filepath.Join(b.common.StateDir, "pin-latch-*.json"))
	if err != nil || len(latches) != 0 {
		t.Errorf("after the success there are latches: %v, %v", latches, err)
	}
	// The token counts a failed login all that time. It is said where a PIN is tried, which is once: the right one.
	if n := strings.Count(b.log.String(), "a wrong PIN has been tried"); n != 1 {
		t.Errorf("%d lines about the token's counter:\n%s", n, b.log)
	}
}

// writePIN replaces the PIN file.
func (b *bench) writePIN(pin []byte) {
	b.t.Helper()
	if err := os.WriteFile(b.token.PINFile+".new", pin, 0o600); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Rename(b.token.PINFile+".new", b.token.PINFile); err != nil {
		b.t.Fatal(err)
	}
}

func mustID(t *testing.T) []byte {
	t.Helper()
	id, err := envelope.NewCKAID(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// The token's own counters: a last try is never made, a locked PIN never tried, a low count is said.
func TestLoginCounters(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		flag    uint
		refused bool
		says    string
	}{
		{"final try", pkcs11.CKF_USER_PIN_FINAL_TRY, true, "next wrong PIN locks it"},
		{"locked", pkcs11.CKF_USER_PIN_LOCKED, true, "is locked"},
		{"count low", pkcs11.CKF_USER_PIN_COUNT_LOW, false, "a wrong PIN has been tried"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, nil)
			before := b.module.Calls("C_Login")
			b.module.TokenFlags(test.flag)
			b.run()
			problem := b.set.Connected(b.within(10 * time.Second))[0]
			if test.refused {
				if !errors.Is(problem, envelope.ErrPINRefused) || !strings.Contains(problem.Error(), test.says) {
					t.Errorf("problem: %v", problem)
				}
				if n := b.module.Calls("C_Login") - before; n != 0 {
					t.Errorf("%d logins", n)
				}
				b.module.TokenFlags(0)
				b.eventually(10*time.Second, func() error { return b.set.Problem() })
				return
			}
			if problem != nil || !strings.Contains(b.log.String(), test.says) {
				t.Errorf("problem %v, log %s", problem, b.log)
			}
		})
	}
}

// A process that dies inside C_Login leaves the latch. When the token says that no login failed, it is tried
// once more, and only once.
func TestInterruptedLogin(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := latch.New(dir)
	die := func() (latch.Outcome, error) { panic("the process dies here") }
	attempt := func(clean bool, login func() (latch.Outcome, error)) (err error) {
		defer func() {
			if recover() != nil {
				err = errors.New("died")
			}
		}()
		return l.Attempt(t.Context(), "token", latchedFile, clean, login)
	}
	tried := 0
	good := func() (latch.Outcome, error) { tried++; return latch.Succeeded, nil }

	_ = attempt(true, die)
	if err := attempt(false, good); !errors.Is(err, latch.ErrStands) || tried != 0 {
		t.Fatalf("with a low count: %v, tried %d", err, tried)
	}
	if err := attempt(true, good); err != nil || tried != 1 {
		t.Fatalf("with a clean token: %v, tried %d", err, tried)
	}
	_ = attempt(true, die)
	_ = attempt(true, die)
	if err := attempt(true, good); !errors.Is(err, latch.ErrStands) || tried != 1 {
		t.Fatalf("after two interruptions: %v, tried %d", err, tried)
	}
	changed := latchedFile
	changed.Ctime++
	if err := l.Attempt(t.Context(), "token", changed, false, good); err != nil || tried != 2 {
		t.Fatalf("after the file changed: %v, tried %d", err, tried)
	}
}

// What is not ours, or cannot be written, stops every attempt.
func TestLatchFailsClosed(t *testing.T) {
	t.Parallel()
	never := func() (latch.Outcome, error) { t.Error("login was tried"); return latch.Succeeded, nil }
	if err := latch.New(filepath.Join(t.TempDir(), "absent")).Attempt(t.Context(), "token", latchedFile, true, never); !errors.Is(err, latch.ErrState) {
		t.Errorf("no folder: %v", err)
	}
	dir := t.TempDir()
	l := latch.New(dir)
	refuse := func() (latch.Outcome, error) { return latch.Refused, errors.New("wrong") }
	_ = l.Attempt(t.Context(), "token", latchedFile, true, refuse)
	names, err := filepath.Glob(filepath.Join(dir, "pin-latch-*.json"))
	if err != nil || len(names) != 1 {
		t.Fatalf("%v, %v", names, err)
	}
	for _, garbage := range []string{"", "{", `{"tried":"maybe"}`, strings.Repeat("x", 5000)} {
		if err := os.WriteFile(names[0], []byte(garbage), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := l.Attempt(t.Context(), "token", latchedFile, true, never); !errors.Is(err, latch.ErrState) {
			t.Errorf("garbage %.10q: %v", garbage, err)
		}
	}
}

// One attempt at a time, over all processes that share the folder.
func TestLatchIsLocked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	inside := make(chan struct{})
	leave := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- latch.New(dir).Attempt(t.Context(), "token", latchedFile, true, func() (latch.Outcome, error) {
			close(inside)
			<-leave
			return latch.Succeeded, nil
		})
	}()
	<-inside
	ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
	defer cancel()
	err := latch.New(dir).Attempt(ctx, "token", latchedFile, true, func() (latch.Outcome, error) {
		t.Error("two logins at once")
		return latch.Succeeded, nil
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the second: %v", err)
	}
	close(leave)
	if err := <-done; err != nil {
		t.Errorf("the first: %v", err)
	}
}

var latchedFile = pinfile.Identity{Device: 1, Inode: 2, Size: 3, Ctime: 4}

// systemd makes a credential again at every start, and for a command beside the service in another folder: the refused PIN
// in it is known by its name.
func TestLatchOfACredentialOutlivesRestarts(t *testing.T) {
	t.Parallel()
	l := latch.New(t.TempDir())
	credential := pinfile.Identity{Path: "/run/credentials/hsm-kms.service/pin", Inode: 1, Ctime: 1, Credential: true}
	refuse := func() (latch.Outcome, error) { return latch.Refused, errors.New("wrong") }
	_ = l.Attempt(t.Context(), "token", credential, true, refuse)
	credential.Inode, credential.Ctime = 2, 2
	err := l.Attempt(t.Context(), "token", credential, true, func() (latch.Outcome, error) {
		t.Error("login was tried")
		return latch.Succeeded, nil
	})
	if !errors.Is(err, latch.ErrStands) {
		t.Errorf("after a restart: %v", err)
	}
	beside := pinfile.Identity{Path: "/run/credentials/run-u42.service/pin", Inode: 3, Ctime: 3, Credential: true}
	if err := l.Standing("token", beside, true); !errors.Is(err, latch.ErrStands) {
		t.Errorf("a command beside the service: %v", err)
	}
	if err := l.Clear(t.Context(), "token", beside); err != nil {
		t.Fatal(err)
	}
	if err := l.Attempt(t.Context(), "token", credential, true, func() (latch.Outcome, error) { return latch.Succeeded, nil }); err != nil {
		t.Errorf("after an operator cleared it: %v", err)
	}
}
