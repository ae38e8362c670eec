package migrate_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/migrate"
)

// fill puts n Secrets under a key; the first is a, the second b and so on.
func fill(s *store, n int, keyID string) {
	for i := range n {
		s.put(fmt.Sprintf("secrets/ns/%c%03d", 'a'+i%26, i), keyID)
	}
}

// is reports whether a request is the rewriting of the Secret a000.
func isA(r *http.Request) bool {
	return r.Method == http.MethodPatch && strings.HasSuffix(r.URL.Path, "/ns/secrets/a000")
}

// Each of 20 Secrets is rewritten, whatever happens to the first; what happened to it is told.
func TestOneObject(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		answer    func(w http.ResponseWriter, n int) bool // to the nth request for it; false: as usual
		rewritten int64
		gone      int64
		reason    string // of its failure; "": none
		attempts  int
	}{
		"well": {func(http.ResponseWriter, int) bool { return false }, 20, 0, "", 1},
		"conflict, twice": {func(w http.ResponseWriter, n int) bool {
			return n <= 2 && answer(w, 409, "Conflict", "the object has been modified")
		}, 20, 0, "", 3},
		"error of the server, twice": {func(w http.ResponseWriter, n int) bool {
			return n <= 2 && answer(w, 500, "InternalError", "etcdserver: request timed out")
		}, 20, 0, "", 3},
		"too many requests, once": {func(w http.ResponseWriter, n int) bool {
			w.Header().Set("Retry-After", "1")
			return n <= 1 && answer(w, 429, "TooManyRequests", "slow down")
		}, 20, 0, "", 2},
		"too many requests, without a time": {func(w http.ResponseWriter, n int) bool {
			return n <= 1 && answer(w, 429, "TooManyRequests", "slow down")
		}, 20, 0, "", 2},
		"unreadable": {func(w http.ResponseWriter, _ int) bool {
			return answer(w, 500, "InternalError", "Internal error occurred: unable to transform key")
		}, 19, 0, "unable to transform key", 5},
		"denied by a webhook": {func(w http.ResponseWriter, _ int) bool {
			return answer(w, 403, "Forbidden", `admission webhook "no.example.com" denied the request`)
		}, 19, 0, `admission webhook "no.example.com" denied`, 1},
		"invalid": {func(w http.ResponseWriter, _ int) bool {
			return answer(w, 422, "Invalid", "spec.x: Required value")
		}, 19, 0, "spec.x: Required value", 1},
		"gone": {func(w http.ResponseWriter, _ int) bool { return answer(w, 404, "NotFound", "not found") }, 19, 1, "", 1},
		"not served": {func(w http.ResponseWriter, _ int) bool {
			http.Error(w, "404 page not found", http.StatusNotFound)
			return true
		}, 19, 0, "no such resource", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore()
			fill(s, 20, oldKey)
			a := newAPI(t, s, newKey, func(w http.ResponseWriter, r *http.Request, n int) bool { return isA(r) && tc.answer(w, n) })
			out, err := migrate.Run(t.Context(), options(t, s, a))
			if err != nil {
				t.Fatal(err)
			}
			if out.Found != 20 || out.Rewritten != tc.rewritten || out.Gone != tc.gone || out.Failed != 20-tc.rewritten-tc.gone {
				t.Errorf("outcome: %+v", out)
			}
			if tc.reason != "" && (len(out.Failures) != 1 || out.Failures[0].Key != "/registry/secrets/ns/a000" || !strings.Contains(out.Failures[0].Reason, tc.reason)) {
				t.Errorf("failures: %+v", out.Failures)
			}
			if out.Clean() != (tc.rewritten == 20) {
				t.Errorf("findings: %+v", out.Report.Findings)
			}
			if n := a.requests("PATCH /api/v1/namespaces/ns/secrets/a000"); n != tc.attempts {
				t.Errorf("%d attempts, want %d", n, tc.attempts)
			}
			if got := s.under("secrets/ns/", newKey); int64(got) != tc.rewritten {
				t.Errorf("%d are under the key", got)
			}
		})
	}
}

func answer(w http.ResponseWriter, code int, reason, message string) bool {
	status(w, code, reason, message)
	return true
}

// Objects that cannot be asked of an API server are named, and nothing else is asked of one instead.
func TestNotAddressable(t *testing.T) {
	t.Parallel()
	s := newStore()
	fill(s, 3, oldKey)
	s.putValue("secrets/ns/broken", []byte("k8s:enc:kms:v2:hsm-kms:\x0a\xff"))
	s.put("secrets/ns/..", oldKey)
	s.put("secrets/ns/one/two", oldKey)
	s.put("secrets/a%2fb/one", oldKey)
	s.put("secrets/cluster-wide", oldKey)
	s.put("elsewhere/ns/one", oldKey)
	s.twice = true
	opts := options(t, s, newAPI(t, s, newKey, nil))
	opts.Parallel = 1 // else what is read again may be under way
	opts.Resources = []string{"*.*"}
	out, err := migrate.Run(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	if out.Found != 9 || out.Rewritten != 3 || out.Failed != 6 {
		t.Errorf("outcome: %+v", out)
	}
	for key, want := range map[string]string{
		"secrets/ns/broken": "no API server can read it", "secrets/ns/..": "is not a valid name", "secrets/ns/one/two": "not the form", "secrets/a%2fb/one": "is not a valid name",
		"secrets/cluster-wide": "place in etcd says otherwise", "elsewhere/ns/one": "--resource-path names it",
	} {
		if !slices.ContainsFunc(out.Failures, func(f migrate.Failure) bool {
			return f.Key == "/registry/"+key && strings.Contains(f.Reason, want)
		}) {
			t.Errorf("%s: no failure says %q: %+v", key, want, out.Failures)
		}
	}
	if s.under("secrets/ns/", newKey) != 3 {
		t.Error("the others have not been rewritten")
	}
}

// One that was refused is not asked for again because etcd was read twice.
func TestRefusedOnce(t *testing.T) {
	t.Parallel()
	s := newStore()
	fill(s, 5, oldKey)
	s.twice = true
	a := newAPI(t, s, newKey, func(w http.ResponseWriter, r *http.Request, _ int) bool {
		return isA(r) && answer(w, 403, "Forbidden", "denied")
	})
	opts := options(t, s, a)
	opts.Parallel = 1
	out, err := migrate.Run(t.Context(), opts)
	if err != nil || out.Failed != 1 || a.requests("PATCH /api/v1/namespaces/ns/secrets/a000") != 1 {
		t.Errorf("%d requests: %+v, %v", a.requests("PATCH /api/v1/namespaces/ns/secrets/a000"), out, err)
	}
}

// Custom resources are found by what their group serves, and proven with an object of somebody's.
func TestCustomResources(t *testing.T) {
	t.Parallel()
	s := newStore()
	for i := range 5 {
		s.put(fmt.Sprintf("example.com/widgets/ns/w%d", i), "")
	}
	s.put("example.com/unknown/ns/one", "")
	opts := options(t, s, newAPI(t, s, newKey, nil), newAPI(t, s, newKey, nil))
	opts.Resources = []string{"widgets.example.com"}
	out, err := migrate.Run(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	if out.Found != 5 || out.Rewritten != 5 || !out.Clean() || len(out.Servers) != 2 || !out.Servers[0].OK || !out.Servers[1].OK {
		t.Errorf("outcome: %+v", out)
	}
	opts.Resources = []string{"*.example.com"}
	out, err = migrate.Run(t.Context(), opts)
	if err != nil || !out.Servers[0].Skipped || !strings.Contains(out.Servers[0].Error, "unknown.example.com is not served") || !out.Servers[1].OK {
		t.Errorf("a resource that nobody serves: %v, %+v", err, out.Servers)
	}
	if out.Failed != 1 || out.Failures[0].Key != "/registry/example.com/unknown/ns/one" || out.Clean() {
		t.Errorf("outcome: %+v", out)
	}
}

func TestDryRun(t *testing.T) {
	t.Parallel()
	s := newStore()
	fill(s, 20, oldKey)
	s.put("secrets/ns/done", newKey)
	before := maps.Clone(s.objects)
	a := newAPI(t, s, oldKey, nil)
	opts := options(t, s, a)
	opts.DryRun, opts.Rate = true, 2
	out, err := migrate.Run(t.Context(), opts)
	if err != nil || out.Found != 20 || out.Seconds != 10 || len(out.Servers) != 1 || out.Resources[0] != (migrate.Resource{Resource: "secrets", Objects: 21, Found: 20}) {
		t.Errorf("outcome: %+v, %v", out, err)
	}
	for key, object := range before {
		if s.objects[key].Revision != object.Revision {
			t.Errorf("%s was written", key)
		}
	}
	if n := a.requests(""); n != a.requests("GET /api/v1") {
		t.Errorf("%d requests", n)
	}
}

// The pace is that of all servers and all requests together.
func TestPace(t *testing.T) {
	t.Parallel()
	s := newStore()
	fill(s, 30, oldKey)
	opts := options(t, s, newAPI(t, s, newKey, nil), newAPI(t, s, newKey, nil))
	opts.Rate = 100
	began := time.Now()
	if _, err := migrate.Run(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 280*time.Millisecond {
		t.Errorf("30 objects at 100 per second took %s", took)
	}
}

// A run that is stopped says how far it came; the next one does what is left.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	s := newStore()
	fill(s, 30, oldKey)
	ctx, cancel := context.WithCancel(t.Context())
	a := newAPI(t, s, newKey, func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method == http.MethodPatch && s.under("secrets/ns/", newKey) == 10 {
			cancel()
		}
		return false
	})
	opts := options(t, s, a)
	opts.Parallel = 1
	out, err := migrate.Run(ctx, opts)
	if !errors.Is(err, context.Canceled) || !out.Interrupted || out.Rewritten != 10 || out.Report != nil {
		t.Errorf("outcome: %+v, %v", out, err)
	}
	out, err = migrate.Run(t.Context(), opts)
	if err != nil || out.Rewritten != 19 && out.Rewritten != 20 || !out.Clean() { // one was under way
		t.Errorf("outcome of the next: %+v, %v", out, err)
	}
}

// An object that is written under another key while everything else is migrated is a finding.
func TestWrittenMeanwhile(t *testing.T) {
	t.Parallel()
	s := newStore()
	fill(s, 10, oldKey)
	a := newAPI(t, s, newKey, func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if isA(r) {
			s.put("secrets/ns/zz", oldKey)
			s.put("secrets/aa/aa", oldKey)
		}
		return false
	})
	out, err := migrate.Run(t.Context(), options(t, s, a))
	if err != nil || out.Clean() || out.Report.Findings[0].Problem != "under another key: "+oldKey {
		t.Errorf("outcome: %+v, %v", out, err)
	}
}

// failing is an etcd that cannot be read.
type failing struct{ *store }

var errEtcd = errors.New("etcd is gone")

func (failing) Find(context.Context, string) (evidence.Object, error) {
	return evidence.Object{}, errEtcd
}

func TestEtcdFails(t *testing.T) {
	t.Parallel()
	s := newStore()
	fill(s, 10, oldKey)
	opts := options(t, s, newAPI(t, s, newKey, nil))
	opts.Sources = []evidence.Source{failing{s}}
	if out, err := migrate.Run(t.Context(), opts); !errors.Is(err, errEtcd) || out.Rewritten != 0 {
		t.Errorf("outcome: %+v, %v", out, err)
	}
	if s.under("secrets/default/", newKey) != 0 {
		t.Error("a canary is left")
	}
}

// moving is an etcd that is compacted while it is read: it is corrected at the end.
type moving struct {
	*store
	corrections []evidence.Object
}

func (m moving) Read(ctx context.Context, way evidence.Way, each func([]evidence.Object) error) (evidence.Reading, error) {
	reading, err := m.store.Read(ctx, way, each)
	if err == nil && way == evidence.Pinned {
		err = evidence.ErrNotWhole
	}
	if err == nil && way == evidence.Followed {
		err = each(slices.Clone(m.corrections))
	}
	return reading, err
}

// Objects, and those to be rewritten, are counted as they are at one revision.
func TestSurveyCorrected(t *testing.T) {
	t.Parallel()
	s := newStore()
	fill(s, 20, oldKey)
	m := moving{store: s}
	objects := s.all()
	s.put("secrets/ns/new", newKey)
	for i, o := range objects[:3] {
		o.Corrects, o.Deleted = true, i == 0
		if o.Value = nil; i > 0 {
			o.Value = s.objects["/registry/secrets/ns/new"].Value
		}
		m.corrections = append(m.corrections, o)
	}
	opts := options(t, s, newAPI(t, s, oldKey, nil))
	opts.Sources, opts.DryRun = []evidence.Source{m}, true
	out, err := migrate.Run(t.Context(), opts)
	if err != nil || out.Found != 17 || out.Resources[0] != (migrate.Resource{Resource: "secrets", Objects: 20, Found: 17}) {
		t.Errorf("outcome: %+v, %v", out, err)
	}
}

// Objects that could not be read at the end may be plain text or under any key, and an etcd of another cluster than the ring's proves
// nothing of the ring's.
func TestNotAllRead(t *testing.T) {
	t.Parallel()
	const hidden = "/registry/secrets/kube-system/../registry/secrets/kube-system0"
	for name, tc := range map[string]struct {
		hidden   []string
		accepted []string
		cluster  string
		problem  string // empty: it is clean
	}{
		"all was read":     {nil, nil, "", ""},
		"a range was not":  {[]string{hidden}, nil, "", "could not be read"},
		"another accepted": {[]string{hidden}, []string{"/other/..^"}, "", "could not be read"},
		"accepted":         {[]string{hidden}, []string{hidden}, "", ""},
		"the ring's":       {nil, nil, "one", ""},
		"another cluster":  {nil, nil, "two", "belongs to the cluster two"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore()
			fill(s, 3, oldKey)
			s.putValue("namespaces/kube-system", []byte(`{"kind":"Namespace","metadata":{"name":"kube-system","uid":"one"}}`))
			s.hidden = tc.hidden
			opts := options(t, s, newAPI(t, s, newKey, nil))
			opts.Accepted, opts.Cluster = tc.accepted, tc.cluster
			out, err := migrate.Run(t.Context(), opts)
			if err != nil || out.Rewritten != 3 {
				t.Fatalf("outcome %+v, %v", out, err)
			}
			if said := fmt.Sprint(out.Report.Findings); out.Clean() != (tc.problem == "") || !strings.Contains(said, tc.problem) {
				t.Errorf("findings: %s, want %q", said, tc.problem)
			}
			if len(out.Report.Accepted) != len(tc.accepted) && tc.problem == "" {
				t.Errorf("accepted is recorded as %v", out.Report.Accepted)
			}
		})
	}
}

// Objects of an outage hold are rewritten, and a server that still writes so is not proven.
func TestHold(t *testing.T) {
	t.Parallel()
	const key = "ring/x02/8899aabbccddeeff"
	s := newStore()
	fill(s, 3, key+"/hold")
	s.put("secrets/ns/z", key)
	opts := options(t, s, newAPI(t, s, key+"/hold", nil))
	opts.RequiredKey = key
	out, err := migrate.Run(t.Context(), opts)
	if !errors.Is(err, migrate.ErrUnproven) || out.Rewritten != 0 || !strings.HasSuffix(migrate.Describe(out.Servers[0]), "writes secrets in an outage hold, under "+key+"/hold: its HSM is away") {
		t.Fatalf("%+v, %v", out, err)
	}
	opts = options(t, s, newAPI(t, s, key, nil))
	opts.RequiredKey = key
	out, err = migrate.Run(t.Context(), opts)
	if err != nil || !out.Clean() || out.Found != 3 || s.under("secrets/ns/", key+"/hold") != 0 {
		t.Errorf("%+v, %v", out, err)
	}
}
