package operator

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator/state"
)

// A late write of a leader that was deposed does not stay: the new one writes each pass at first.
func TestLateWriteOfDeposed(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	o := newOperator(t, a, newPlugin(t, keyID(t, time.Now())), "n2")
	settling := state.Decision{State: state.Settling, Reason: "it is waited"}
	o.show(t.Context(), settling)
	late := map[string]any{"state": "Retirable", "leader": "n1", "command": "hsm-kms keys retire ring/x00/0011223344556677"}
	a.set(func() { a.objects[keyRings+"/ring"]["status"] = late })
	o.show(t.Context(), settling)
	var ring keyRing
	if a.get(t, keyRings+"/ring", &ring); ring.Status.State != state.Settling || ring.Status.Leader != "n2" || ring.Status.Command != "" {
		t.Errorf("%+v", ring.Status)
	}
	was := a.requests
	o.shown.first = time.Now().Add(-o.cfg.validity() - time.Second)
	if o.show(t.Context(), settling); a.requests != was {
		t.Error("it goes on writing what has not changed")
	}
}

// A KeyRing that somebody has edited is written over, whatever stands in it.
func TestEditedKeyRing(t *testing.T) {
	t.Parallel()
	future := metav1.NewTime(time.Now().Add(1000 * time.Hour))
	for name, status := range map[string]map[string]any{
		"a number that is none of ours": {"state": "Steady", "objectsLeft": 1e30},
		"a time that is none":           {"state": "Steady", "since": "2030-01-01T00:00:00"},
		"another type":                  {"state": "Steady", "history": "none"},
		"a state of the future":         {"state": "Steady", "since": future},
		"a long history":                {"state": "Steady", "since": metav1.Now(), "history": slices.Repeat([]any{map[string]any{"state": "Steady", "time": metav1.Now(), "message": "m"}}, 1000)},
	} {
		a := newAPI(t)
		o := newOperator(t, a, newPlugin(t, keyID(t, time.Now())), "n1")
		a.objects[keyRings+"/ring"] = map[string]any{"metadata": map[string]any{"name": "ring", "uid": "u"}, "status": status}
		o.show(t.Context(), state.Decision{State: state.Steady, Reason: "all is well"})
		var ring keyRing
		a.get(t, keyRings+"/ring", &ring)
		if s := ring.Status; s.Message != "all is well" || s.Since.After(time.Now()) || len(s.History) > maxHistory {
			t.Errorf("%s: %s since %s, %d changes", name, s.Message, s.Since, len(s.History))
		}
	}
}

// A migration that only has our label stays, and a name that would lead elsewhere leads nowhere.
func TestSweepTakesOnlyOurs(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	o := newOperator(t, a, newPlugin(t, keyID(t, time.Now())), "n1")
	const elsewhere = "/api/v1/namespaces/app"
	a.objects[elsewhere] = map[string]any{}
	for i, name := range []string{"hsm-kms-x1", "of-a-person", "", "hsm-kms-/../../../../.." + elsewhere} {
		a.objects[fmt.Sprintf("%s/hsm-kms-x%d", migrationsPath, i+1)] = map[string]any{"metadata": map[string]any{"name": name, "labels": map[string]any{migrationsLabel: namespace}}}
	}
	if seen, err := o.migrations(t.Context()); err != nil || len(seen) != 1 || seen["hsm-kms-x1"] == nil {
		t.Errorf("%v, %v", seen, err)
	}
	if err := o.sweep(t.Context()); err != nil || a.objects[elsewhere] == nil || a.count(migrationsPath) != 3 {
		t.Errorf("%v, left: %v", err, a.objects)
	}
}

// Names of Leases that come and go are not kept, and those that only have our label are no nodes.
func TestSightsOfLeasesThatWent(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	o := newOperator(t, a, newPlugin(t, keyID(t, time.Now())), "n1")
	o.sights[leaderLease] = sight{}
	for i := range 5 {
		a.set(func() {
			for path := range a.objects {
				if strings.Contains(path, "/leases/") {
					delete(a.objects, path)
				}
			}
			for _, path := range []string{o.leases() + "/node-x", o.leases() + "/other-", identityLeases + "/apiserver-x"} {
				a.objects[fmt.Sprint(path, i)] = map[string]any{"metadata": map[string]any{"name": fmt.Sprint(path[strings.LastIndex(path, "/")+1:], i), "resourceVersion": "1", "labels": map[string]any{nodeLabel: "true", "apiserver.kubernetes.io/identity": "x"}}}
			}
		})
		if nodes, err := o.nodes(t.Context()); err != nil || len(nodes) != 2 {
			t.Fatalf("%v, %v", nodes, err)
		}
		if _, err := o.identities(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(o.sights) != 3 {
		t.Errorf("%v", o.sights)
	}
}

// A list that cannot be read for hours is logged once.
func TestLogOfListThatIsNone(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.noList = true
	o := newOperator(t, a, newPlugin(t, keyID(t, time.Now())), "n1")
	var log bytes.Buffer
	o.cfg.Log = slog.New(slog.NewJSONHandler(&log, nil))
	for range 10 {
		if _, err := o.pass(t.Context()); err == nil {
			t.Fatal("it was read")
		}
	}
	if n := strings.Count(log.String(), "cannot be read"); n != 1 {
		t.Errorf("told %d times:\n%s", n, log.String())
	}
}
