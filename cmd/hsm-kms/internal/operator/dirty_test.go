package operator

import (
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator/state"
)

// A node that leads again does not count its clean report of before, if the leader between has read an object under the key.
func TestStaleReport(t *testing.T) {
	t.Parallel()
	now := time.Now()
	old, current := keyID(t, now.Add(-100*time.Hour)), keyID(t, now.Add(-50*time.Hour))
	a, p := newAPI(t), newPlugin(t, current, old)
	leads := func(o *Operator, at time.Time) {
		t.Helper()
		o.look(t.Context())
		o.world.Nodes = []state.Node{o.self.state(o.cfg.Node, "ring")}
		if leader, err := o.campaign(t.Context(), at); err != nil || leader != o.cfg.Node {
			t.Fatalf("%s leads (%v), want %s", leader, err, o.cfg.Node)
		}
	}
	weigh := func(o *Operator, at time.Time, under int64) {
		o.weigh(reading(at, 100, current, old, under), at, state.Key{ID: current})
	}
	one, two := newOperator(t, a, p, "n1"), newOperator(t, a, p, "n2")
	leads(one, now)
	weigh(one, now.Add(-3*time.Hour), 0)
	if err := one.record([]string{old}); err != nil {
		t.Fatal(err)
	}
	if one.dropStale(); len(one.kept.times()) != 1 {
		t.Fatal("a report that nothing speaks against is dropped")
	}
	for _, at := range []time.Time{now, now.Add(time.Minute)} { // it sees that the first one is silent
		if _, err := two.campaign(t.Context(), at); err != nil {
			t.Fatal(err)
		}
	}
	leads(two, now.Add(time.Minute))
	weigh(two, now.Add(-2*time.Hour), 1)
	weigh(two, now.Add(-time.Hour), 0) // it was rewritten
	leads(two, now.Add(time.Minute))
	one.campaign(t.Context(), now.Add(time.Minute)) //nolint:errcheck // it lost
	leads(one, now.Add(2*time.Minute))
	if one.dropStale(); len(one.kept.times()) != 0 {
		t.Error("the report of before counts")
	}

	// After a later clean reading there is nothing against it.
	weigh(one, now.Add(-time.Minute), 0)
	if err := one.record([]string{old}); err != nil {
		t.Fatal(err)
	}
	if one.dropStale(); len(one.kept.times()) != 1 {
		t.Error("the report of after does not count")
	}
}

// The text of a Lease counts only if it is bounded and well formed.
func TestDirtyOfOthers(t *testing.T) {
	t.Parallel()
	now := time.Now().UTC().Truncate(time.Second)
	for name, c := range map[string]struct {
		text string
		want time.Time
	}{
		"as a leader writes it": {`{"k":"` + now.Format(time.RFC3339) + `"}`, now},
		"in the future":         {`{"k":"` + now.Add(time.Hour).Format(time.RFC3339) + `"}`, time.Time{}},
		"no JSON":               {`{`, time.Time{}},
		"long":                  {`{"k":"` + now.Format(time.RFC3339) + `"` + strings.Repeat(" ", maxPublished) + `}`, time.Time{}},
	} {
		o := &Operator{dirty: dirty{}}
		lease := &coordinationv1.Lease{}
		lease.Annotations = map[string]string{dirtyAnnotation: c.text}
		if o.share(lease); !o.dirty["k"].Equal(c.want) || (lease.Annotations == nil) != c.want.IsZero() {
			t.Errorf("%s: %v, and the Lease has %v", name, o.dirty, lease.Annotations)
		}
	}
}
