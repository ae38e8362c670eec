package daemon

import (
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/testworker"
)

func TestMain(m *testing.M) { os.Exit(testworker.Run(m)) }

// A read ring whose HSM does not answer must not delay the service of the ring that is written under.
func TestStartDoesNotWaitForReadRings(t *testing.T) {
	t.Parallel()
	store, err := softhsm.New(t.Context(), t.TempDir(), "old", "")
	if err != nil {
		t.Fatal(err)
	}
	faults := faultp11.New(t, store.Module, faultp11.Options{SoftHSMConf: store.Conf()})
	release := faults.Hang("C_Initialize")
	open := func(tokens ...hsm.TokenConfig) keyRing {
		common := hsm.Config{Ring: "kube-old", Profile: envelope.AESGCM, StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
		set := hsm.Open(common, tokens)
		return keyRing{set: set, Ring: envelope.NewRing(envelope.RingConfig{Name: common.Ring, Profile: common.Profile}, set)}
	}
	read := open(hsm.TokenConfig{
		Name: "old-a", Module: faults.Path(), Label: store.Label, PINFile: store.PINFile, MaxSessions: 2, CallTimeout: time.Second, ConnectTimeout: time.Minute,
	})
	read.read = &config.ReadRing{KeyRing: "kube-old"}
	began := time.Now()
	stop, err := startTokens(t.Context(), []keyRing{open(), read}, false, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took >= firstAttemptWait {
		t.Errorf("the start took %s", took)
	}
	release()
	stop()
}

// With a hold the process does not end for the sake of a token, not even at its start.
func TestStartWithHoldDoesNotEnd(t *testing.T) {
	t.Parallel()
	common := hsm.Config{Ring: "kube-secrets", Profile: envelope.AESGCM, StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
	for _, stay := range []bool{false, true} {
		set := hsm.Open(common, []hsm.TokenConfig{{Name: "hsm-a", Module: "/nowhere.so", Label: "k8s", MaxSessions: 1, CallTimeout: time.Second}})
		rings := []keyRing{{set: set, Ring: envelope.NewRing(envelope.RingConfig{Name: common.Ring, Profile: common.Profile}, set)}}
		stop, err := startTokens(t.Context(), rings, stay, slog.New(slog.DiscardHandler))
		if (err == nil) != stay {
			t.Errorf("stay %t: %v", stay, err)
		}
		if err == nil {
			stop()
		}
	}
}
