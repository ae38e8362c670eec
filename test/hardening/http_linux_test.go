package hardening

import (
	"net"
	"strings"
	"testing"
)

// Somebody else has http.address. The plugin serves nevertheless, says so, and takes the address when it is free.
func TestTakenHTTPAddress(t *testing.T) {
	t.Parallel()
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	w := newRig(t, options{http: other.Addr().String()})
	if err := once(w.within(patience), w.client()); err != nil {
		t.Errorf("without its address: %v", err)
	}
	if log := read(t, w.plugin.Log()); !strings.Contains(log, "metrics and health are not served; trying again") || !strings.Contains(log, "address already in use") {
		t.Errorf("the log does not say so:\n%s", log)
	}
	_ = other.Close()
	eventually(t, func() error { _, err := get(w.within(patience), "http://"+w.http+"/readyz"); return err })
}
