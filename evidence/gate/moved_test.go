package gate_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
	"github.com/hsm-kms/hsm-kms/evidence/migrate"
)

const written = "next/x02/0000000000000002"

// migrated is a migration to written that came to a clean end, with a report as clean makes them.
func migrated(report *evidence.Report) *migrate.Outcome {
	proof := func(server, resource string) migrate.Proof {
		return migrate.Proof{Server: server, Resource: resource, OK: true, Writes: "kms:v2:hsm-kms", KeyID: written}
	}
	return &migrate.Outcome{
		RequiredKey: written, Newer: []evidence.NewerKey{}, Failures: []migrate.Failure{}, Resources: []migrate.Resource{}, Report: report,
		Servers: []migrate.Proof{proof("one", "secrets"), proof("two", "secrets"), {Server: "two", Resource: "configmaps", Skipped: true}},
	}
}

// moved is sound for the last key of a ring that is only read: everything is under a key of the other ring.
func moved() *gate.Case {
	c := sound()
	under := func(r *evidence.Report) {
		for i := range r.Resources {
			for j := range r.Resources[i].Keys {
				if r.Resources[i].Keys[j].KeyID != "" {
					r.Resources[i].Keys[j].KeyID = written
				}
			}
		}
	}
	under(c.File.Report)
	under(c.Own)
	for _, s := range c.Snapshots {
		under(s)
	}
	c.KeyID = "old/x01/0000000000000001"
	c.WrittenRing, c.Others, c.Successor = "next", []string{written}, at(-1000)
	c.File.Migration = migrated(c.File.Report)
	return c
}

// The last key of a ring goes when every API server was seen to write under the other one, and not otherwise.
func TestMoved(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(*gate.Case)
		want   string
	}{
		"moved":                          {func(*gate.Case) {}, ""},
		"nothing followed it":            {func(c *gate.Case) { c.Successor = at(1000) }, ""},
		"the report says nothing of it":  {func(c *gate.Case) { c.File.Migration = nil }, "does not say what each API server writes"},
		"a dry run":                      {func(c *gate.Case) { c.File.Migration.DryRun = true }, "did not come to a clean end"},
		"stopped":                        {func(c *gate.Case) { c.File.Migration.Interrupted = true }, "did not come to a clean end"},
		"objects failed":                 {func(c *gate.Case) { c.File.Migration.Failed = 1 }, "did not come to a clean end"},
		"findings":                       {func(c *gate.Case) { c.File.Migration.Report.Findings = []evidence.Finding{{Problem: "x"}} }, "did not come to a clean end"},
		"to a key of the ring itself":    {func(c *gate.Case) { c.File.Migration.RequiredKey = c.KeyID }, "is no key of the ring next"},
		"to a key that no token holds":   {func(c *gate.Case) { c.Others = []string{"next/x03/0000000000000003"} }, "is no key of the ring next"},
		"an API server under another":    {func(c *gate.Case) { p := &c.File.Migration.Servers[1]; p.OK, p.KeyID = false, c.KeyID }, "two writes secrets under another key: old/"},
		"an API server that was unseen":  {func(c *gate.Case) { p := &c.File.Migration.Servers[1]; p.OK, p.Error = false, "timeout" }, "two, secrets: timeout"},
		"proven for another key":         {func(c *gate.Case) { c.File.Migration.Servers[1].KeyID = "next/x09/0000000000000009" }, "has not shown what an API server writes"},
		"a resource that was not shown":  {func(c *gate.Case) { c.File.Migration.Servers = c.File.Migration.Servers[2:] }, "has not shown under which key API servers write secrets"},
		"something is under the key now": {func(c *gate.Case) { add(c.Own, c.KeyID, 1) }, "etcd now: 1 object under old/"},
		"too early":                      {func(c *gate.Case) { c.Settle = 1000 * c.Settle }, "--settle"},
	} {
		c := moved()
		test.change(c)
		got := c.Judge()
		switch {
		case test.want == "" && len(got) > 0:
			t.Errorf("%s: %q", name, got)
		case test.want != "" && (len(got) == 0 || !strings.Contains(got[0].Reason, test.want) || got[0].Hint == ""):
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

// The JSON of a migration is read as strictly as that of a report, and has one in it.
func TestLoadMigration(t *testing.T) {
	t.Parallel()
	file, err := gate.Load(write(t, encoded(t, migrated(clean(at(1), 100)))))
	if err != nil || file.Migration == nil || file.Migration.RequiredKey != written || file.Report.Revision != 100 || !file.Time.Equal(at(1)) {
		t.Fatalf("%+v, %v", file, err)
	}
	if file, err := gate.Load(write(t, encoded(t, clean(at(1), 100)))); err != nil || file.Migration != nil {
		t.Errorf("the report alone: %+v, %v", file, err)
	}
	text := string(encoded(t, migrated(clean(at(1), 100))))
	for name, changed := range map[string]string{
		"no report":        string(encoded(t, migrated(nil))),
		"no servers":       strings.Replace(text, `"servers"`, `"Servers2"`, 1),
		"an unknown field": strings.Replace(text, `"found"`, `"found2"`, 1),
		"a cut report":     strings.Replace(text, `"restricted"`, `"restricted2"`, 1),
		"two values":       text + "{}",
	} {
		if _, err := gate.Load(write(t, []byte(changed))); !errors.Is(err, gate.ErrNotEvidence) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
