package gate

import (
	"slices"
	"strings"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/migrate"
)

// moved: of a key whose ring is only read, every API server was seen to write under the ring that takes its place, by the
// migration that ended with the report. No instant in a key says when that was so: nodes are moved one after the other, and one
// that was forgotten goes on writing under the key.
func (c *Case) moved(v *verdict) {
	if c.WrittenRing == "" {
		return
	}
	const again = "make it with the configuration of now: hsm-kms etcd migrate -o json > migrate.json; come back with it after --settle"
	m := c.File.Migration
	if m == nil {
		v.against(again, "the report %s does not say what each API server writes, and the ring of %s has no key that followed it: it must be that of a migration", c.FileName, v.keyID)
		return
	}
	switch {
	case m.DryRun, m.Interrupted, m.Failed > 0, !m.Clean():
		v.against(again, "the migration %s did not come to a clean end", c.FileName)
	case !strings.HasPrefix(m.RequiredKey, c.WrittenRing+"/"), !slices.Contains(c.Others, m.RequiredKey):
		v.against(again, "the migration %s is to %s, which is no key of the ring %s", c.FileName, evidence.Printable(m.RequiredKey), c.WrittenRing)
	}
	for _, p := range m.Servers {
		if !p.OK && !p.Skipped || p.OK && p.KeyID != m.RequiredKey {
			v.against(again, "the migration %s has not shown what an API server writes: %s", c.FileName, migrate.Describe(p))
		}
	}
	for _, resource := range c.File.Report.Resources {
		if c.isOfRings(resource) && !slices.ContainsFunc(m.Servers, func(p migrate.Proof) bool { return p.OK && p.Resource == resource.Resource }) {
			v.against("name it too: hsm-kms etcd migrate --resources; then come back with that after --settle",
				"the migration %s has not shown under which key API servers write %s", c.FileName, evidence.Printable(resource.Resource))
		}
	}
}

// isOfRings reports whether objects of the resource are under a key of either ring, so that API servers write it under one.
func (c *Case) isOfRings(resource evidence.Resource) bool {
	ring, _, _ := strings.Cut(c.KeyID, "/")
	return slices.ContainsFunc(resource.Keys, func(k evidence.Key) bool {
		return strings.HasPrefix(k.KeyID, ring+"/") || strings.HasPrefix(k.KeyID, c.WrittenRing+"/")
	})
}
