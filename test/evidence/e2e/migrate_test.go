//go:build e2e

package e2e

import (
	"maps"
	"strings"
	"testing"
)

// A cluster in plain text comes under the HSM's key, and after a rotation under the next one.
func TestMigrate(t *testing.T) {
	t.Parallel()
	w := newRig(t)
	encrypts(t, w.cluster, identity, w.hsm)
	must(t, w.cluster.CreateNamespace(t.Context(), namespace))
	w.customResource(t)
	w.populate(t, 60, 20, 10)
	m := w.migrator(t)

	t.Log("an API server that still writes plain text is found out, and nothing is rewritten")
	before := w.revisions(t)
	out, o := m.run(t, 1, "--wait", "0s")
	if len(out.Servers) != 3 || out.Servers[0].OK || out.Servers[0].Writes != "plain text" || out.Rewritten != 0 || out.Report != nil {
		t.Errorf("outcome: %+v", out)
	}
	if after := w.revisions(t); !maps.Equal(before, after) || !strings.Contains(o.errOut, "as plain text") {
		t.Errorf("something has changed, or nothing is said: %s", o.errOut)
	}

	t.Log("a dry run writes nothing")
	encrypts(t, w.cluster, w.hsm, identity)
	before = w.revisions(t)
	out, _ = m.run(t, 0, "--dry-run")
	if !out.DryRun || out.Found < 90 || out.Rewritten != 0 || out.Seconds < 1 {
		t.Errorf("outcome: %+v", out)
	}
	if after := w.revisions(t); !maps.Equal(before, after) {
		t.Error("the dry run has changed something")
	}

	t.Log("from plain text")
	out, _ = m.run(t, 0)
	if out.Rewritten < 90 || out.Failed != 0 || out.Report == nil || len(out.Report.Findings) != 0 {
		t.Errorf("outcome: %+v", out)
	}
	for _, p := range out.Servers {
		if !p.OK || p.KeyID != w.keyID {
			t.Errorf("proof: %+v", p)
		}
	}
	w.noCanaries(t)

	t.Log("a second run has nothing to do")
	before = w.revisions(t)
	if out, _ = m.run(t, 0); out.Found != 0 {
		t.Errorf("outcome: %+v", out)
	}
	if after := w.revisions(t); !maps.Equal(before, after) {
		t.Error("objects that were under the key have been written again")
	}

	t.Log("to the next key")
	next := w.rotate(t)
	encrypts(t, w.cluster, w.hsm, identity)
	if out, _ = m.run(t, 0); out.RequiredKey != next || out.Rewritten < 90 {
		t.Errorf("outcome: %+v", out)
	}
}
