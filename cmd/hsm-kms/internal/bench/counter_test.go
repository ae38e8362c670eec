package bench

import (
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/testworker"
)

func TestMain(m *testing.M) {
	os.Exit(testworker.Run(m))
}

// Calls are counted as a module sees them: each is a round trip to an HSM behind a network.
func TestCounterCountsWhatTheModuleSees(t *testing.T) {
	t.Parallel()
	token := softhsm.ForTest(t, "k8s")
	module := faultp11.New(t, token.Module, faultp11.Options{SoftHSMConf: token.Conf()})
	cfg := hsm.TokenConfig{Name: "counted", Module: module.Path(), Label: token.Label, PINFile: token.PINFile, MaxSessions: 2, CallTimeout: 2 * time.Second}
	var count Counter
	common := hsm.Config{Ring: "ring", Profile: envelope.AESGCM, StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Observer: &count}
	id, err := envelope.NewCKAID(time.Now().Add(-time.Minute))
	if err == nil {
		_, err = hsm.Generate(t.Context(), common, cfg, id)
	}
	if err != nil {
		t.Fatal(err)
	}
	module.ResetCounters()
	before := count.Calls()
	set := hsm.Open(common, []hsm.TokenConfig{cfg})
	t.Cleanup(set.Start(t.Context()))
	if err := set.Connected(t.Context())[0]; err != nil {
		t.Fatal(err)
	}
	ring := envelope.NewRing(envelope.RingConfig{Name: "ring", Profile: envelope.AESGCM}, set)
	if err := ring.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := ring.Exercise(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := (Plan{Clients: []int{1, 2}, Time: 20 * time.Millisecond}).Run(t.Context(), ring, ring.Advance().Current.ID, &count); err != nil {
		t.Fatal(err)
	}
	if got, seen := int(count.Calls()-before), module.TotalCalls(); got != seen {
		t.Errorf("%d calls were counted, and the module saw %d", got, seen)
	}
}
