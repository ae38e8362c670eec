package retire

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
)

// retainedOfReadRing: no key of a ring that is only read is current, so the last one may go too. Then the configuration must say
// that the ring is to go, and which keys there are must be clear.
func (j *judgement) retainedOfReadRing() {
	j.plan.ReadOnly = true
	if j.NoEtcd {
		j.refuse(hint.Wrap(fmt.Errorf("--no-etcd is for pending keys, and %s was current", j.KeyID), "leave --no-etcd out"))
	}
	if !j.Retiring {
		j.refuse(hint.Wrap(fmt.Errorf("readRings of the configuration does not say that the ring %s is retiring", j.KeyID.Ring),
			"when etcd migrate has come to a clean end, set retiring: true for it on every node, and restart the plugins one after the other"))
	}
	if err := errors.Join(j.View.Problem, j.View.Duplicates); err != nil {
		j.refuse(fmt.Errorf("it is not clear which keys the ring has: %w", err))
	}
	if j.Evidence == nil || j.Evidence.Migration == nil {
		return
	}
	var servers []string
	for _, p := range j.Evidence.Migration.Servers {
		if p.OK && !slices.Contains(servers, p.Server) {
			servers = append(servers, p.Server)
		}
	}
	j.warn("not proven: that the cluster has no API server but those that the migration has shown to write under %s: %s", j.WrittenRing, evidence.Printable(strings.Join(servers, ", ")))
}

// pluginReads: the plugin of this machine must read the key's ring, and write under the other one.
func (j *judgement) pluginReads() {
	const restart = "start hsm-kms serve here with this configuration until hsm-kms status names a key of the new ring; where no plugin belongs, give this machine a stateDir of its own"
	if j.Proven.Key.Ring == j.KeyID.Ring {
		j.refuse(hint.Wrap(fmt.Errorf("the plugin of this machine wrote under the ring %s last (%s in stateDir)", j.KeyID.Ring, health.ProvenFile), restart))
	}
	switch {
	case j.Plugin.Err != nil:
		j.refuse(fmt.Errorf("it is not clear which key the plugin of this machine writes under: %w", j.Plugin.Err))
	case j.Plugin.Answered && strings.HasPrefix(j.Plugin.KeyID, j.KeyID.Ring+"/"):
		j.refuse(hint.Wrap(fmt.Errorf("the plugin of this machine names %s as the key to write under", j.Plugin.KeyID), restart))
	}
}
