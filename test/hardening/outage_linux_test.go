package hardening

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
)

// mostLines is how many lines an outage may write at its beginning, whatever it is: token, probe, Status, and one for each
// code that requests fail with.
const mostLines = 25

// An outage of an hour is a handful of lines: what is said is said at the beginning, and as long as nothing changes, nothing
// more, however many requests fail and however often the token is tried. (A few lines an hour for each code that requests fail
// with, and their sum, are all that comes with time: kmsplugin's TestAnHourOfFailures.) Each says what to do.
func TestAnOutageIsAHandfulOfLines(t *testing.T) {
	t.Parallel()
	outages := map[string]func(w *rig){
		"no session": func(w *rig) { // with those that are open already it would go on
			w.faults.Fail("C_OpenSession", pkcs11.CKR_DEVICE_ERROR).UntilCleared()
			w.faults.Fail("C_EncryptInit", pkcs11.CKR_SESSION_HANDLE_INVALID).UntilCleared()
		},
		"now and then a session": func(w *rig) {
			w.faults.MaxSessions(1)
			w.faults.Fail("C_EncryptInit", pkcs11.CKR_SESSION_HANDLE_INVALID).UntilCleared()
		},
		"all gone":       func(w *rig) { w.faults.FailAll(pkcs11.CKR_DEVICE_REMOVED).UntilCleared() },
		"all calls hang": func(w *rig) { w.faults.HangAll() },
	}
	for name, begin := range outages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newRig(t, options{faulty: true, token: "callTimeout: 200ms", extra: "probeInterval: 1s\nrefreshInterval: 1s"})
			client := w.client()
			load, stop := context.WithCancel(t.Context())
			defer stop()
			for range 4 {
				go trickle(load, client)
			}
			start, attempts := w.lines(), w.attempts()
			begin(w)
			eventually(t, func() error { // the state has been told of
				_, err := get(w.within(patience), "http://"+w.http+"/readyz")
				if err == nil {
					return errStillReady
				}
				return nil
			})
			wait(t, 1500*time.Millisecond)
			settled := w.lines()
			wait(t, 3*time.Second)
			later := w.lines()
			t.Logf("%d lines at the beginning, %d in the 3 s after, %d attempts", len(settled)-len(start), len(later)-len(settled), w.attempts()-attempts)
			if n := len(settled) - len(start); n == 0 || n > mostLines {
				t.Errorf("the outage began with %d lines:\n%s", n, strings.Join(settled[len(start):], "\n"))
			}
			for _, line := range settled[len(start):] {
				if strings.Contains(line, `"level":"ERROR"`) && (!strings.Contains(line, `"hint":"`) || strings.Contains(line, `"hint":""`)) {
					t.Errorf("it does not say what to do: %s", line)
				}
			}
			for _, line := range later[len(settled):] {
				if !strings.Contains(line, `"msg":"request failed"`) { // with a code that was not met before
					t.Errorf("nothing changed, and the log says: %s", line)
				}
			}
			w.faults.Clear() // that it heals is shown elsewhere
		})
	}
}

var errStillReady = errors.New("it is still ready")

// lines are those of the log so far.
func (w *rig) lines() []string {
	w.t.Helper()
	return strings.Split(strings.TrimSpace(read(w.t, w.plugin.Log())), "\n")
}

// attempts counts the calls with which every attempt to connect begins.
func (w *rig) attempts() int { return w.faults.Calls("C_GetSlotList") }

// wait lets the outage go on: that nothing is written in a time is what is tested, so there is no event to wait for.
func wait(t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
	}
}
