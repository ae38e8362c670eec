package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/doctor"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/retire"
	"github.com/hsm-kms/hsm-kms/kmsplugin/audit"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
)

// signalIn starts a command as a process of its own, sends it the signal when it hangs in fn on the token, lets the call go
// on a moment later, and returns what the command said.
func (r *retireRig) signalIn(token *rigToken, fn string, sig unix.Signal, args ...string) (out, errOut string, code int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	cmd, stdout, stderr := r.startCommand(ctx, args...)
	if err := token.faults.WaitHung(ctx, fn, 1); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		r.t.Fatalf("%v: %s%s", err, stdout.String(), stderr.String())
	}
	r.must(cmd.Process.Signal(sig))
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	select {
	case <-ended: // by the signal, with nothing said
	case <-time.After(200 * time.Millisecond):
	}
	token.faults.Clear()
	<-ended
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// A signal does not end a command in the middle of a destruction: the outcome is told and recorded, and the next token is
// left alone.
func TestRetireTellsTheOutcomeAfterASignal(t *testing.T) {
	t.Parallel()
	for _, sig := range []unix.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			t.Parallel()
			r := newRetireRig(t)
			r.tokens[0].faults.Hang("C_DestroyObject")
			out, errOut, code := r.signalIn(r.tokens[0], "C_DestroyObject", sig, r.args()...)
			var said retiredJSON
			err := json.Unmarshal([]byte(out), &said)
			want := []retire.Outcome{{Token: "hsm-a", Outcome: "destroyed"}, {Token: "hsm-b", Outcome: "kept"}}
			if err != nil || code != 2 || !slices.Equal(said.Outcomes, want) {
				t.Errorf("exit %d, %v: %+v: %s%s", code, err, said.Outcomes, out, errOut)
			}
			trail, err := os.ReadFile(audit.Beside(r.audit, "keys-retire"))
			if err != nil || !bytes.Contains(trail, []byte(`"operation":"keys.retire.end"`)) {
				t.Errorf("the trail has no end: %v: %s", err, trail)
			}
			if held := r.holders(); !slices.Equal(held, []string{"hsm-b"}) {
				t.Errorf("the key is on %v", held)
			}
		})
	}
}

// A signal does not end a command while a key is being made: it says which one.
func TestKeysRotateTellsTheOutcomeAfterASignal(t *testing.T) {
	t.Parallel()
	for _, sig := range []unix.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			t.Parallel()
			r := newMakeRig(t)
			r.tokens[0].faults.HangCall("C_GenerateKey").After(1).Once()
			out, errOut, code := r.signalIn(r.tokens[0], "C_GenerateKey", sig, "keys", "rotate", "--activate-in", "1h", "-o", "json")
			var said keyJSON
			err := json.Unmarshal([]byte(out), &said)
			keys := r.keys()
			if err != nil || code != 0 || len(keys) != 2 || said.KeyID != keys[1].KeyID {
				t.Errorf("exit %d, %v: %s%s; the ring is %+v", code, err, out, errOut, keys)
			}
		})
	}
}

// Nor does it when the key is made and is looked at once more.
func TestKeysRotateTellsTheOutcomeAfterALateSignal(t *testing.T) {
	t.Parallel()
	r := newMakeRig(t)
	r.tokens[0].faults.HangCall("C_Login").After(2).Once() // after the look before, and the login that makes the key
	out, errOut, code := r.signalIn(r.tokens[0], "C_Login", unix.SIGTERM, "keys", "rotate", "--activate-in", "1h", "-o", "json")
	var said keyJSON
	err := json.Unmarshal([]byte(out), &said)
	keys := r.keys()
	if err != nil || len(keys) != 2 || said.KeyID != keys[1].KeyID {
		t.Errorf("exit %d, %v: %s%s; the ring is %+v", code, err, out, errOut, keys)
	}
}

// A signal that is ignored, as SIGINT is in a shell's background and SIGHUP under nohup, changes nothing: neither does it end
// the command, nor does it hold its workers.
func TestIgnoredSignals(t *testing.T) {
	t.Parallel()
	for name, sig := range map[string]unix.Signal{"INT": unix.SIGINT, "HUP": unix.SIGHUP} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newMakeRig(t)
			r.ignores = name
			r.tokens[0].faults.HangCall("C_Login").Once()
			out, errOut, code := r.signalIn(r.tokens[0], "C_Login", sig, "keys", "rotate", "--activate-in", "1h", "-o", "json")
			if keys := r.keys(); code != 0 || len(keys) != 2 {
				t.Errorf("exit %d: %s%s; the ring is %+v", code, out, errOut, keys)
			}
		})
	}
}

// Before anything was begun, a signal leaves the token as it was.
func TestKeysRotateMakesNothingAfterASignal(t *testing.T) {
	t.Parallel()
	r := newMakeRig(t)
	r.tokens[0].faults.HangCall("C_GenerateKey").Once() // the trial
	out, errOut, code := r.signalIn(r.tokens[0], "C_GenerateKey", unix.SIGINT, "keys", "rotate", "--activate-in", "1h", "-o", "json")
	if code != 2 || out != "" || !bytes.HasPrefix([]byte(errOut), []byte("hsm-kms: no key was made: ")) {
		t.Errorf("exit %d: %s%s", code, out, errOut)
	}
	if keys := r.keys(); len(keys) != 1 {
		t.Errorf("the ring is %+v", keys)
	}
}

// A library that aborts in C_Initialize costs its own token alone: keys list shows the other one's keys and doctor its state,
// and both say what has happened to the first.
func TestLibraryThatAborts(t *testing.T) {
	t.Parallel()
	r := newRetireRig(t)
	r.tokens[0].faults.Die("C_Initialize", faultp11.Abort).UntilCleared()
	out, errOut, code := r.hsmkms("keys", "list")
	if !strings.Contains(out, r.new) || !strings.Contains(out+errOut, "signal: aborted") {
		t.Errorf("keys list: exit %d: %s%s", code, out, errOut)
	}
	found, code, errOut := r.doctor()
	for _, token := range []string{"hsm-a", "hsm-b"} {
		if !slices.ContainsFunc(found, func(f doctor.Finding) bool {
			return strings.Contains(fmt.Sprint(f), token) && (f.Result == doctor.Fail) == (token == "hsm-a") && (token == "hsm-b" || strings.Contains(f.Detail, "signal: aborted"))
		}) {
			t.Errorf("doctor: exit %d, nothing of %s as it is: %+v %s", code, token, found, errOut)
		}
	}
}
