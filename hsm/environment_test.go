package hsm_test

import (
	"testing"

	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// Two tokens of one library, each with a configuration of its own for it, in one plugin.
func TestEnvironmentOfEachToken(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(_ *hsm.Config, cfg *hsm.TokenConfig) { cfg.MaxSessions = 2 })
	other := softhsm.ForTest(t, "k8s")
	b.cfg.Module, b.cfg.Env = other.Module, map[string]string{"SOFTHSM2_CONF": b.token.Conf()}
	second := b.cfg
	second.Name, second.PINFile, second.Env = "hsm-b", other.PINFile, map[string]string{"SOFTHSM2_CONF": other.Conf()}
	b.others = []hsm.TokenConfig{second}
	b.run()
	for _, err := range b.set.Connected(b.within(b.cfg.CallTimeout * 40)) {
		if err != nil {
			t.Fatal(err)
		}
	}
	serials := b.set.Serials()
	if len(serials) != 2 || serials["hsm-a"] == serials["hsm-b"] {
		t.Errorf("serial numbers %v", serials)
	}
}
