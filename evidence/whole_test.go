package evidence_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// moving is a source that changes while it is read: it is first given up after some pages, and then corrected.
type moving struct {
	memory
	corrections []evidence.Object
	ways        []evidence.Way
	never       bool // it is whole never
}

func (m *moving) correct(path string, value []byte) {
	m.corrections = append(m.corrections, evidence.Object{
		Key: []byte("/registry/" + path), Path: []byte(path), Value: value, Revision: 1000, Corrects: true, Deleted: value == nil,
	})
}

func (m *moving) Read(ctx context.Context, way evidence.Way, each func([]evidence.Object) error) (evidence.Reading, error) {
	m.ways = append(m.ways, way)
	reading, err := m.memory.Read(ctx, way, each)
	if err == nil && (way == evidence.Pinned || m.never) {
		err = fmt.Errorf("%w: compacted", evidence.ErrNotWhole)
	}
	if err == nil {
		err = each(append([]evidence.Object{}, m.corrections...))
	}
	return reading, err
}

// newMoving has an object that is rewritten, one that goes, one that comes, one that was plain text, one that was
// undecodable and one that becomes it, and two that stay.
func newMoving(t *testing.T, h *hsm) *moving {
	t.Helper()
	m := &moving{}
	under := func(keyID string, n int, path string) []byte { return sealed(t, h.dek(keyID, n), path) }
	for _, path := range []string{"secrets/ns/stays", "secrets/ns/rewritten", "secrets/ns/goes", "secrets/ns/breaks"} {
		m.put(path, under("old", 1, path))
	}
	m.put("secrets/ns/foreign", under("lost", 1, "secrets/ns/elsewhere"))
	m.put("secrets/ns/plain", []byte("k8s\x00plain"))
	m.put("secrets/ns/broken", []byte("k8s:enc:"))
	m.put("secrets/ns/stays-broken", []byte("k8s:enc:"))
	m.correct("secrets/ns/rewritten", under("new", 1, "secrets/ns/rewritten"))
	m.correct("secrets/ns/goes", nil)
	m.correct("secrets/ns/never-seen", nil)
	m.correct("secrets/ns/comes", under("new", 2, "secrets/ns/comes"))
	m.correct("secrets/ns/foreign", under("new", 2, "secrets/ns/foreign"))
	m.correct("secrets/ns/plain", under("new", 2, "secrets/ns/plain"))
	m.correct("secrets/ns/broken", under("new", 2, "secrets/ns/broken"))
	m.correct("secrets/ns/breaks", []byte("k8s:enc:"))
	return m
}

// Objects as they were before a correction, or in a try that came to nothing, are in no number and no list.
func TestReportCorrected(t *testing.T) {
	t.Parallel()
	m := newMoving(t, newHSM())
	r := build(t, evidence.ReportOptions{}, m)
	want := []evidence.Resource{{Resource: "secrets", Total: 8, Undecodable: 2, Keys: []evidence.Key{
		{Provider: "kms:v2:hsm-kms", KeyID: "new", Objects: 5, DEKs: 2}, {Provider: "kms:v2:hsm-kms", KeyID: "old", Objects: 1, DEKs: 1},
	}}}
	if diff := cmp.Diff(want, r.Resources); diff != "" || r.Objects != 8 || r.Plaintext != 0 {
		t.Errorf("%+v: %s", r, diff)
	}
	broken := []evidence.Problem{{Key: "/registry/secrets/ns/breaks", Reason: "incomplete prefix"}, {Key: "/registry/secrets/ns/stays-broken", Reason: "incomplete prefix"}}
	for i := range r.UndecodableObjects {
		r.UndecodableObjects[i].Reason = "incomplete prefix"
	}
	if diff := cmp.Diff(broken, r.UndecodableObjects); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]evidence.Way{evidence.Pinned, evidence.Followed}, m.ways); diff != "" {
		t.Error(diff)
	}
	// A second source is counted beside it.
	two := build(t, evidence.ReportOptions{}, m, newMoving(t, newHSM()))
	if two.Objects != 16 || two.Undecodable != 4 || len(two.UndecodableObjects) != 4 || two.Resources[0].Keys[0].Objects != 10 || two.Resources[0].Keys[0].DEKs != 2 {
		t.Errorf("two sources: %+v", two)
	}
}

// The same of a report that is restricted to what an object is no longer.
func TestReportCorrectedAway(t *testing.T) {
	t.Parallel()
	m := &moving{}
	m.put("routes/ns/a", []byte("k8s:enc:kms:v2:x:")) // of no known resource, and encrypted
	m.correct("routes/ns/a", []byte("k8s\x00plain"))
	if r := build(t, evidence.ReportOptions{Resources: []string{"secrets"}, AllowEmpty: true}, m); r.Objects != 0 || len(r.Findings) != 0 {
		t.Errorf("report = %+v", r)
	}
}

func TestVerifyCorrected(t *testing.T) {
	t.Parallel()
	h := newHSM()
	m := newMoving(t, h)
	v := verify(t, m, h, evidence.VerifyOptions{})
	if v.Objects != 8 || v.Verified != 6 || v.Failed != 0 || v.Undecodable != 2 || v.Plaintext != 0 || len(v.Failures) != 2 || len(v.Keys) != 2 ||
		v.Keys[0].Verified != 5 || v.Keys[1].Verified != 1 {
		t.Errorf("verification = %+v", v)
	}
	for name, n := range h.calls {
		if n != 1 {
			t.Errorf("the HSM was asked %d times for %s", n, name)
		}
	}
}

// A reading that is never whole gives no report and no verification.
func TestNotWhole(t *testing.T) {
	t.Parallel()
	m := newMoving(t, newHSM())
	m.never = true
	_, err := evidence.Build(t.Context(), []evidence.Source{m}, evidence.ReportOptions{})
	if !errors.Is(err, evidence.ErrNotWhole) || hint.Of(err) == "" || len(m.ways) != 4 {
		t.Errorf("report: %v after %d tries", err, len(m.ways))
	}
	if _, err := evidence.Verify(t.Context(), []evidence.Source{m}, newHSM(), evidence.VerifyOptions{}); !errors.Is(err, evidence.ErrNotWhole) {
		t.Errorf("verification: %v", err)
	}
}
