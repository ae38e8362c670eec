package metrics

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
)

// oldRing is a read ring with two keys, of which one is proven, and one that is refused.
type oldRing struct{}

func ofOldRing(n byte) envelope.KeyID {
	k := id(n)
	k.Ring = "kube-old"
	return k
}

func (oldRing) Name() string { return "kube-old" }
func (oldRing) Report() health.ReadRing {
	return health.ReadRing{Ring: "kube-old", Keys: 2, Proven: 1, Retiring: true, Problem: envelope.ErrUnavailable}
}

func (oldRing) View() envelope.View {
	return envelope.View{LastRead: time.Unix(7000, 0), Versions: []envelope.Version{{Key: envelope.Key{ID: ofOldRing(3)}, State: envelope.Refused}}}
}

// A read ring has series of its own: how it is, and how often something was opened under it.
func TestReadRings(t *testing.T) {
	t.Parallel()
	m, _ := full()
	m.KeyUsed("Decrypt", ofOldRing(1).String(), codes.OK)
	m.KeyUsed("Decrypt", ofOldRing(1).String(), codes.Unavailable)
	m.KeyUsed("Decrypt", id(2).String(), codes.OK)
	m.KeyUsed("Decrypt", ofOldRing(3).String(), codes.NotFound)
	m.KeyUsed("Decrypt", ofOldRing(3).HoldString(), codes.NotFound)
	m.KeyUsed("Decrypt", ofOldRing(1).HoldString(), codes.OK)
	m.KeyUsed("Decrypt", "made-up/x01/0000000000000000", codes.OK)
	want(t, m, map[string]float64{
		"read_ring_ok{kube-old}": 0, "read_ring_versions{kube-old}": 2, "read_ring_proven{kube-old}": 1, "read_ring_retiring{kube-old}": 1,
		"read_ring_last_refresh_timestamp_seconds{kube-old}": 7000, "read_ring_decrypts_total{kube-old}": 2,
		"refused_key_requests_total{}": 2, "unknown_key_requests_total{}": 0,
	})
}

// A read ring that cannot be used leaves /livez alone and says on /readyz what not to do.
func TestReadyzWithoutAReadRing(t *testing.T) {
	t.Parallel()
	yes, no := func() bool { return true }, func() bool { return false }
	address := serveReading(t, yes, yes, no)
	if code, text := request(t, "GET", "http://"+address+"/readyz"); code != 503 || text != "a read ring cannot be used: do not restart kube-apiserver here while etcd holds its key_ids; hsm-kms status and the log say why\n" {
		t.Errorf("readyz: %d %q", code, text)
	}
	if code, _ := request(t, "GET", "http://"+address+"/livez"); code != 200 {
		t.Errorf("livez: %d", code)
	}
}
