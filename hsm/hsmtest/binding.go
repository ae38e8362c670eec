package hsmtest

import (
	"testing"

	"github.com/hsm-kms/hsm-kms/hsm"
)

// testBinding: the token either keeps the cluster's UID beside the keys or leaves the ring as it was; the keys are served
// as before. What it writes stays, so it needs the permission that making keys needs.
func testBinding(t *testing.T, s Subject) {
	const uid = "0b7e2d3c-6d2a-4c55-9f0e-8f1f6c1d2a3b"
	if s.ForeignKeys {
		t.Skip("nothing may be made on this token")
	}
	d := Start(t, s)
	defer d.Close()
	id := d.Ready()
	all, err := d.Set.Bind(t.Context(), uid)
	if err != nil || len(all) != 1 {
		t.Fatalf("%+v, %v", all, err)
	}
	t.Logf("%s: %v", all[0].Outcome, all[0].Err)
	want := map[hsm.Outcome]string{hsm.Made: uid, hsm.NotMade: ""}
	is, err := hsm.ClusterOf(d.Set.Bindings(t.Context()))
	if expected, clear := want[all[0].Outcome]; !clear || err != nil || is != expected {
		t.Errorf("told %q (%v), and then the ring is bound to %q, %v", all[0].Outcome, all[0].Err, is, err)
	}
	if err := d.RoundTrip(t.Context(), id); err != nil {
		t.Error(err)
	}
}
