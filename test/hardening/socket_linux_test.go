package hardening

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

// A clean-up that takes the socket away costs a moment: the plugin makes the socket again, says so once, and clients
// that were connected do not notice.
func TestSocketIsMadeAgain(t *testing.T) {
	t.Parallel()
	w := newRig(t, options{})
	before := w.client()
	if err := once(w.within(patience), before); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(w.plugin.Socket()), os.Remove(w.plugin.Socket()+".lock")); err != nil {
		t.Fatal(err)
	}
	if err := once(w.within(patience), before); err != nil {
		t.Errorf("the connection that was there: %v", err)
	}
	if err := once(w.within(patience), w.client()); err != nil { // it waits until it can connect, as an API server does
		t.Errorf("a new connection: %v", err)
	}
	eventually(t, func() error {
		if n := strings.Count(read(t, w.plugin.Log()), "is made again"); n != 1 {
			return fmt.Errorf("the log says it %d times", n)
		}
		return nil
	})
	if w.gauge("hsm_kms_socket_renewals_total") != 1 || w.gauge("hsm_kms_socket_listening") != 1 {
		t.Error("the metrics do not tell")
	}
}

// Where it cannot be made again, /readyz and the metrics say so, and it heals when the way is free.
func TestSocketThatIsLost(t *testing.T) {
	t.Parallel()
	w := newRig(t, options{})
	path := w.plugin.Socket()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	ready := func() error { _, err := get(w.within(patience), "http://"+w.http+"/readyz"); return err }
	eventually(t, func() error {
		if ready() == nil {
			return errStillReady
		}
		return nil
	})
	if w.gauge("hsm_kms_socket_listening") != 0 {
		t.Error("the metric does not tell")
	}
	if log := read(t, w.plugin.Log()); strings.Count(log, "cannot be made again") != 1 || !strings.Contains(log, "it is not a socket") {
		t.Errorf("the log:\n%s", log)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	eventually(t, ready)
	if err := once(w.within(patience), w.client()); err != nil {
		t.Error(err)
	}
}
