package operator

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	svmv1 "k8s.io/api/storagemigration/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator/state"
)

// manager is a kube-controller-manager: of the migrations of one resource it runs one at a time.
type manager struct {
	takes time.Duration // zero: without end
	every int           // it rewrites every so many objects, and says that it has succeeded
	fails bool
}

// work does what is due, once a second. It ends with the test.
func (m manager) work(s *sim) {
	began := map[string]time.Time{}
	for ; s.t.Context().Err() == nil; pauseFor(s.t.Context(), time.Second) {
		running := map[metav1.GroupResource]bool{}
		all := s.migrations()
		for _, svm := range all {
			if meta.IsStatusConditionTrue(svm.Status.Conditions, string(svmv1.MigrationRunning)) {
				running[svm.Spec.Resource] = true
			}
		}
		for _, svm := range all {
			is := func(condition svmv1.MigrationConditionType) bool {
				return meta.IsStatusConditionTrue(svm.Status.Conditions, string(condition))
			}
			ours := began[svm.Name]
			switch {
			case is(svmv1.MigrationSucceeded) || is(svmv1.MigrationFailed):
			case ours.IsZero() && !running[svm.Spec.Resource]:
				running[svm.Spec.Resource], began[svm.Name] = true, time.Now()
				s.condition(svm, svmv1.MigrationRunning, true)
			case !ours.IsZero() && m.takes > 0 && time.Since(ours) >= m.takes && m.fails:
				s.condition(svm, svmv1.MigrationRunning, false)
				s.condition(svm, svmv1.MigrationFailed, true)
			case !ours.IsZero() && m.takes > 0 && time.Since(ours) >= m.takes:
				s.migrate(svm.Spec.Resource.Resource, m.every)
				s.condition(svm, svmv1.MigrationRunning, false)
				s.condition(svm, svmv1.MigrationSucceeded, true)
			}
		}
	}
}

func (s *sim) migrate(resource string, every int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, key := range slices.Sorted(maps.Keys(s.objects)) {
		if strings.HasPrefix(key, "/registry/"+resource+"/") && i%every == 0 {
			s.nodes[0].rewrite(key)
		}
	}
}

func (s *sim) migrations() (all []*svmv1.StorageVersionMigration) {
	s.api.set(func() {
		for _, path := range slices.Sorted(maps.Keys(s.api.objects)) {
			if strings.HasPrefix(path, migrationsPath) {
				text, _ := json.Marshal(s.api.objects[path])
				svm := &svmv1.StorageVersionMigration{}
				if err := json.Unmarshal(text, svm); err != nil {
					s.t.Error(err)
				}
				all = append(all, svm)
			}
		}
	})
	return all
}

// condition sets one, if the migration is still there.
func (s *sim) condition(svm *svmv1.StorageVersionMigration, condition svmv1.MigrationConditionType, is bool) {
	status := metav1.ConditionFalse
	if is {
		status = metav1.ConditionTrue
	}
	meta.SetStatusCondition(&svm.Status.Conditions, metav1.Condition{Type: string(condition), Status: status, Reason: "Test", Message: "of the test"})
	text, _ := json.Marshal(svm)
	var object map[string]any
	if err := json.Unmarshal(text, &object); err != nil {
		s.t.Error(err)
	}
	s.api.set(func() {
		if path := migrationsPath + "/" + svm.Name; s.api.objects[path] != nil {
			s.api.objects[path] = object
		}
	})
}

// foreign makes the migration of another party.
func (s *sim) foreign(resource string) {
	svm := &svmv1.StorageVersionMigration{ObjectMeta: metav1.ObjectMeta{Name: "another", ResourceVersion: "1"}, Spec: svmv1.StorageVersionMigrationSpec{Resource: metav1.GroupResource{Resource: resource}}}
	s.api.set(func() { s.api.objects[migrationsPath+"/"+svm.Name] = map[string]any{} })
	s.condition(svm, svmv1.MigrationRunning, true)
}

// Whatever kube-controller-manager does, the rotation comes to its end: what it leaves is rewritten directly. It is asked for
// Secrets, and never for custom resources. Nothing of ours is left afterwards, and what is another's stays.
func TestStorageVersionMigration(t *testing.T) {
	t.Parallel()
	const secrets = 35 // 20 that lie there, and five of each node's clients
	for name, c := range map[string]struct {
		begin   func(s *sim)
		manager *manager
		ours    [2]int        // Secrets that are rewritten by us: at least, at most
		within  time.Duration // from the activation to Settling
	}{
		"succeeds":         {nil, &manager{takes: 20 * time.Second, every: 1}, [2]int{0, 0}, 4 * time.Minute},
		"leaves half":      {nil, &manager{takes: 20 * time.Second, every: 2}, [2]int{5, 30}, 4 * time.Minute},
		"fails":            {nil, &manager{takes: 20 * time.Second, fails: true}, [2]int{10, secrets}, 4 * time.Minute},
		"does not run":     {nil, nil, [2]int{10, secrets}, 6 * time.Minute},
		"never ends":       {nil, &manager{}, [2]int{10, secrets}, 15 * time.Minute},
		"another's is on":  {func(s *sim) { s.foreign("secrets") }, &manager{}, [2]int{10, secrets}, 6 * time.Minute},
		"not in this API":  {func(s *sim) { s.api.set(func() { s.api.older = true }) }, nil, [2]int{10, secrets}, 4 * time.Minute},
		"may not be asked": {func(s *sim) { s.api.set(func() { s.api.forbidden = "hsm-kms-" }) }, nil, [2]int{10, secrets}, 4 * time.Minute},
	} {
		if sampled() && name != "leaves half" && name != "another's is on" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			simulated(t, func(t *testing.T) {
				s := simulate(t, 3, func(cfg *Config) { cfg.Engine = EngineSVM })
				s.waitState(state.Steady, 10*time.Minute)
				if c.begin != nil {
					c.begin(s)
				}
				if c.manager != nil {
					go c.manager.work(s)
				}
				s.rotate()
				s.waitState(state.Settling, simAnnounce+c.within)
				s.set(func() {
					if n := s.patched["secrets"]; n < c.ours[0] || n > c.ours[1] {
						t.Errorf("%d Secrets were rewritten by us, want %v", n, c.ours)
					}
					if s.patched["widgets"] == 0 {
						t.Error("no custom resource was rewritten by us")
					}
				})
				s.finish()
				for _, svm := range s.migrations() {
					if svm.Name != "another" || name != "another's is on" {
						t.Errorf("%s is left", svm.Name)
					}
				}
			})
		})
	}
}

// A leader that is killed leaves its migrations, and the next one removes them.
func TestMigrationsOfKilledLeader(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	simulated(t, func(t *testing.T) {
		s := simulate(t, 3, func(cfg *Config) { cfg.Engine = EngineSVM })
		s.waitState(state.Steady, 10*time.Minute)
		go manager{takes: time.Minute, every: 1}.work(s)
		s.rotate()
		migrating := s.wait("a migration", simPatience, func(status Status) bool {
			return strings.Contains(status.Message, "kube-controller-manager rewrites secrets (") && len(s.migrations()) == 1
		})
		s.node(migrating.Leader).kill()
		s.wait("another leader", 10*time.Minute, func(status Status) bool { return status.Leader != migrating.Leader })
		s.node(migrating.Leader).start(nil)
		s.finish()
		if left := s.migrations(); len(left) != 0 {
			t.Errorf("%s is left", fmt.Sprint(left))
		}
	})
}
