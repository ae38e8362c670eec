package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	svmv1 "k8s.io/api/storagemigration/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator/state"
	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/migrate"
)

// Engine is who has objects rewritten.
type Engine string

const (
	EngineOwn Engine = "own"
	// EngineSVM asks kube-controller-manager first (StorageVersionMigration v1, Kubernetes 1.37 and later). What it leaves is
	// rewritten as with EngineOwn.
	EngineSVM Engine = "svm"
)

// StorageVersionMigrations of ours have a name with our prefix, and a label with the namespace of the Leases, which is that of
// one ring.
const (
	migrationsPath  = "/apis/storagemigration.k8s.io/v1/storageversionmigrations"
	migrationsLabel = "hsm-kms.io/operate"
	migrationPrefix = "hsm-kms-"
)

// The times of a StorageVersionMigration.
const (
	migrationStarts = 2 * time.Minute  // one that does not run by then is not waited for
	migrationSlack  = 10 * time.Minute // one that takes so much longer than our own rewriting would is not waited for either
	migrationLook   = 5 * time.Second  // between two looks at them
)

// delegate has kube-controller-manager rewrite what it can. "Succeeded" says nothing: it skips what is newer than its checkpoint,
// and takes a conflict for done. etcd is read afterwards, and what is left is rewritten by us. So nothing here is an error.
func (o *Operator) delegate(ctx context.Context, current state.Key) {
	if o.delegated == current.ID {
		return // that was tried: what is left now is for us
	}
	o.delegated = current.ID
	left := o.migratable(ctx, current)
	if len(left) == 0 {
		return
	}
	names := strings.Join(slices.Sorted(maps.Keys(left)), ", ")
	d := state.Decision{State: state.Migrating, Current: current, Reason: "kube-controller-manager rewrites " + names + " (StorageVersionMigration)"}
	o.show(ctx, d)
	defer o.showProgress(ctx, d)()
	defer func() { _ = o.sweep(context.WithoutCancel(ctx)) }() // what stays is removed by the next leader
	if err := o.sweep(ctx); err != nil {
		o.logLeft("all", err)
		return
	}
	open := map[string]string{} // name of a migration to its resource
	var objects int64
	for resource, n := range left {
		name, err := o.submit(ctx, resource)
		if err != nil {
			o.logLeft(resource, err)
			continue
		}
		open[name] = resource
		objects += n
	}
	began := time.Now()
	limit := began.Add(migrationSlack + time.Duration(float64(objects)/o.cfg.Migrate.Rate*float64(time.Second)))
	for len(open) > 0 {
		select {
		case <-ctx.Done():
			return
		case <-time.After(migrationLook):
		}
		seen, err := o.migrations(ctx)
		for name, resource := range open {
			if over, why := judged(seen[name], err, time.Since(began) > migrationStarts, time.Now().After(limit)); over {
				delete(open, name)
				o.logLeft(resource, why)
			}
		}
	}
}

// Why a migration is not waited for.
var (
	errNotRunning = fmt.Errorf("it does not run after %s", migrationStarts)
	errTooLong    = errors.New("it takes longer than rewriting the objects directly would")
	errDeleted    = errors.New("somebody deleted it")
)

// judged reports whether a migration is not waited for any longer. why nil: it says that it succeeded. lookErr is why it could
// not be seen.
func judged(svm *svmv1.StorageVersionMigration, lookErr error, late, tooLong bool) (over bool, why error) {
	is := func(condition svmv1.MigrationConditionType) bool {
		return svm != nil && meta.IsStatusConditionTrue(svm.Status.Conditions, string(condition))
	}
	switch {
	case tooLong:
		return true, errors.Join(errTooLong, lookErr)
	case lookErr != nil:
		return false, nil
	case svm == nil:
		return true, errDeleted
	case is(svmv1.MigrationSucceeded):
		return true, nil
	case is(svmv1.MigrationFailed):
		return true, errors.New(evidence.Printable(meta.FindStatusCondition(svm.Status.Conditions, string(svmv1.MigrationFailed)).Message))
	case late && !is(svmv1.MigrationRunning):
		return true, errNotRunning
	}
	return false, nil
}

// logLeft logs what came of a migration.
func (o *Operator) logLeft(resource string, why error) {
	if why != nil {
		o.cfg.Log.Warn("a StorageVersionMigration is not waited for; objects are rewritten directly", "resource", resource, "error", why)
		return
	}
	o.cfg.Log.Info("a StorageVersionMigration has succeeded; etcd is read to see what is left", "resource", resource)
}

// migratable are the resources that have objects which are not under the key, and how many, of those that
// kube-controller-manager is asked for: built-in ones, and no Events, which expire.
func (o *Operator) migratable(ctx context.Context, current state.Key) map[string]int64 {
	left := map[string]int64{}
	for _, r := range o.report.Resources {
		n := r.Total
		for _, key := range r.Keys {
			if key.KeyID == current.ID {
				n -= key.Objects
			}
		}
		plural, group, _ := strings.Cut(r.Resource, ".")
		wanted := slices.ContainsFunc(o.cfg.Migrate.Resources, func(entry string) bool { return stored.Matches(entry, r.Resource) })
		if n > 0 && wanted && stored.IsBuiltIn(group) && plural != "events" && !strings.HasPrefix(r.Resource, "/") && o.servers[0].Serves(ctx, r.Resource) == nil {
			left[r.Resource] = n
		}
	}
	return left
}

// submit makes the migration of a resource.
func (o *Operator) submit(ctx context.Context, resource string) (name string, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	plural, group, _ := strings.Cut(resource, ".")
	made := &svmv1.StorageVersionMigration{}
	err = o.kube.Create(ctx, migrationsPath, svmv1.StorageVersionMigration{
		TypeMeta:   metav1.TypeMeta{APIVersion: svmv1.SchemeGroupVersion.String(), Kind: "StorageVersionMigration"},
		ObjectMeta: metav1.ObjectMeta{GenerateName: migrationPrefix, Labels: map[string]string{migrationsLabel: o.cfg.Migrate.Namespace}},
		Spec:       svmv1.StorageVersionMigrationSpec{Resource: metav1.GroupResource{Group: group, Resource: plural}},
	}, made)
	if errors.Is(err, migrate.ErrGone) || errors.Is(err, migrate.ErrUnknown) {
		err = fmt.Errorf("the API server has no StorageVersionMigrations of version v1: %w", err)
	}
	return made.Name, err
}

// migrations are those of this ring, by name.
func (o *Operator) migrations(ctx context.Context) (map[string]*svmv1.StorageVersionMigration, error) {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	seen := map[string]*svmv1.StorageVersionMigration{}
	err := o.kube.List(ctx, migrationsPath, migrationsLabel+"="+o.cfg.Migrate.Namespace, func(item []byte) error {
		svm := &svmv1.StorageVersionMigration{}
		if err := json.Unmarshal(item, svm); err != nil {
			return fmt.Errorf("decoding a StorageVersionMigration: %w", err)
		}
		if strings.HasPrefix(svm.Name, migrationPrefix) && len(content.IsDNS1123Subdomain(svm.Name)) == 0 { // it becomes part of a path
			seen[svm.Name] = svm
		}
		return nil
	})
	if errors.Is(err, migrate.ErrGone) || errors.Is(err, migrate.ErrUnknown) {
		return seen, nil // there are none in this release
	}
	return seen, err
}

// sweep removes the migrations of this ring, also those of a leader that was killed.
func (o *Operator) sweep(ctx context.Context) error {
	old, err := o.migrations(ctx)
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	for name := range old {
		err = errors.Join(err, o.kube.Delete(ctx, migrationsPath+"/"+name))
	}
	return err
}
