package hardening

import (
	"path/filepath"
	"testing"
)

// A full disk under stateDir keeps the plugin neither from starting nor from logging in, with a record of PIN attempts from
// before and without any. A new record is made when there is room.
func TestFullStateDisk(t *testing.T) {
	t.Parallel()
	r := newRig(t, options{})
	if err := r.plugin.Stop(); err != nil {
		t.Fatal(err)
	}
	fill, free := smallDiskAt(t, filepath.Join(r.dir, "plugin", "state"))
	restart := func(when string) {
		t.Helper()
		if _, err := r.plugin.Start(r.within(patience)); err != nil { // Status is ok
			t.Fatalf("%s: %v", when, err)
		}
		if err := r.plugin.Stop(); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	fill()
	restart("without a record")
	restart("again")
	free()
	restart("with room")
	fill()
	restart("with a record")
	if records, err := filepath.Glob(filepath.Join(r.dir, "plugin", "state", "pin-attempts-*")); err != nil || len(records) == 0 {
		t.Errorf("records %q, %v", records, err)
	}
}
