package hsm_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// wrongPIN is a PIN that no token here has.
const wrongPIN = "9999999\n"

// lookAgain starts the token again, as a restart of the plugin does, and returns what its first attempt came to.
func (b *bench) lookAgain() error {
	b.t.Helper()
	b.stop()
	b.run()
	return b.set.Connected(b.within(10 * time.Second))[0]
}

// A file that is written again with the bytes that were refused is no new PIN.
func TestRefusedPINWrittenAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	right, err := os.ReadFile(b.token.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	b.writePIN([]byte(wrongPIN))
	before := b.module.Calls("C_Login")
	b.run()
	if problem := b.set.Connected(b.within(10 * time.Second))[0]; !errors.Is(problem, envelope.ErrPINRefused) {
		t.Fatal(problem)
	}
	changes := []func() error{func() error { return nil }}
	for range 5 {
		changes = append(changes, func() error { b.writePIN([]byte(wrongPIN)); return nil })
	}
	for _, mode := range []os.FileMode{0o400, 0o600, 0o400} {
		changes = append(changes,
			func() error { now := time.Now(); return os.Chtimes(b.token.PINFile, now, now) },
			func() error { return os.Chmod(b.token.PINFile, mode) })
	}
	// The same bytes in another file too.
	changes = append(changes, func() error {
		b.cfg.PINFile += ".copy"
		return os.WriteFile(b.cfg.PINFile, []byte(wrongPIN), 0o600)
	})
	for i, change := range changes {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if problem := b.lookAgain(); !errors.Is(problem, envelope.ErrPINRefused) {
			t.Errorf("after change %d: %v", i, problem)
		}
	}
	if n := b.module.Calls("C_Login") - before; n != 1 {
		t.Errorf("the wrong PIN was tried %d times", n)
	}
	if err := os.WriteFile(b.cfg.PINFile, right, 0o600); err != nil {
		t.Fatal(err)
	}
	b.eventually(10*time.Second, b.set.Problem)
}

// fastClock is one that runs so many times as fast.
func fastClock(times int) func() time.Time {
	start := time.Now()
	return func() time.Time { return start.Add(time.Duration(times) * time.Since(start)) }
}

// Three nodes use one token, whose logins hang for a while: each node tries the PIN twice, and once more when it has logged
// in before, and all heal by themselves when the token does. A node that has never logged in is left to a person.
func TestHangingLoginsOnThreeNodes(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	b := newBench(t, func(c *hsm.Config, token *hsm.TokenConfig) {
		*c = hsm.WithClock(*c, fastClock(20)) // the pause of two minutes takes 6 s
		token.ConnectTimeout = time.Second
	})
	var nodes []*hsm.Set
	for i := range 3 {
		if i > 0 {
			b.common.StateDir = t.TempDir()
		}
		b.run()
		if problem := b.set.Connected(b.within(20 * time.Second))[0]; problem != nil {
			t.Fatal(problem)
		}
		nodes = append(nodes, b.set)
	}
	before := b.module.Calls("C_Login")
	release := b.module.Hang("C_Login")
	b.module.DropSessions()
	b.common.StateDir = t.TempDir()
	b.run()
	fresh := b.set
	b.eventually(30*time.Second, func() error {
		if problem := fresh.Problem(); !errors.Is(problem, envelope.ErrPINRefused) {
			return fmt.Errorf("a node that has never logged in: %v", problem)
		}
		return nil
	})
	release()
	for i, node := range nodes {
		b.eventually(60*time.Second, func() error {
			if problem := node.Problem(); problem != nil {
				return fmt.Errorf("node %d: %w", i, problem)
			}
			return nil
		})
	}
	if n := b.module.Calls("C_Login") - before; n > 3*5+2 {
		t.Errorf("%d logins", n)
	}
	if problem := fresh.Problem(); !errors.Is(problem, envelope.ErrPINRefused) {
		t.Errorf("a node that has never logged in: %v", problem)
	}
}

// A locked and an expired PIN are told as that, and the token is looked at again without a person.
func TestLockedAndExpiredPIN(t *testing.T) {
	t.Parallel()
	for code, want := range map[uint]error{pkcs11.CKR_PIN_LOCKED: envelope.ErrPINLocked, pkcs11.CKR_PIN_EXPIRED: envelope.ErrPINExpired} {
		t.Run(want.Error(), func(t *testing.T) {
			t.Parallel()
			b := newBench(t, func(c *hsm.Config, _ *hsm.TokenConfig) { *c = hsm.WithClock(*c, fastClock(10)) })
			before := b.module.Calls("C_Login")
			b.module.Fail("C_Login", code).Once()
			b.run()
			problem := b.set.Connected(b.within(10 * time.Second))[0]
			if !errors.Is(problem, want) || errors.Is(problem, envelope.ErrPINRefused) || hint.Of(problem) == "" {
				t.Errorf("%v (hint %q)", problem, hint.Of(problem))
			}
			b.eventually(20*time.Second, b.set.Problem)
			if n := b.module.Calls("C_Login") - before; n != 2 {
				t.Errorf("%d logins", n)
			}
		})
	}
}

// Blanks at the ends of a PIN that was refused are named.
func TestRefusedPINWithABlank(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.writePIN([]byte("9999999 \n"))
	b.run()
	for range 2 {
		problem := b.set.Connected(b.within(10 * time.Second))[0]
		if !errors.Is(problem, envelope.ErrPINRefused) || !strings.Contains(problem.Error(), "ends with a blank") {
			t.Error(problem)
		}
		_ = b.lookAgain()
	}
}

// A byte order mark is refused before the token sees the PIN.
func TestPINWithAByteOrderMark(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	before := b.module.Calls("C_Login")
	right, err := os.ReadFile(b.token.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	b.writePIN(append([]byte("\xef\xbb\xbf"), right...))
	b.run()
	if problem := b.set.Connected(b.within(10 * time.Second))[0]; problem == nil || !strings.Contains(problem.Error(), "byte order mark") {
		t.Errorf("%v", problem)
	}
	if n := b.module.Calls("C_Login") - before; n != 0 {
		t.Errorf("%d logins", n)
	}
	b.writePIN(right)
	b.eventually(10*time.Second, b.set.Problem)
}

// Two rings on one token, as those of a plugin that is moved from one profile to another, share the record of PIN attempts: a PIN
// that is refused is tried once, and not once for each ring. The right one logs both in.
func TestRefusedPINOfTwoRings(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	right, err := os.ReadFile(b.token.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	b.writePIN([]byte(wrongPIN))
	other, cfg := b.common, b.cfg
	other.Ring, cfg.Name = "another-ring", "hsm-a-again"
	before := b.module.Calls("C_Login")
	b.run()
	set := hsm.Open(other, []hsm.TokenConfig{cfg})
	t.Cleanup(set.Start(t.Context()))
	for _, s := range []*hsm.Set{b.set, set} {
		if problem := s.Connected(b.within(20 * time.Second))[0]; !errors.Is(problem, envelope.ErrPINRefused) {
			t.Errorf("with the wrong PIN: %v", problem)
		}
	}
	if n := b.module.Calls("C_Login") - before; n != 1 {
		t.Errorf("the wrong PIN was tried %d times", n)
	}
	b.writePIN(right)
	b.eventually(20*time.Second, b.set.Problem)
	b.eventually(20*time.Second, set.Problem)
}
