package migrate_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/migrate"
)

// While one server writes under another key, or in plain text, nothing is rewritten.
func TestUnproven(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ keyID, writes string }{
		"old key": {oldKey, "kms:v2:hsm-kms"}, "plain text": {"", "plain text"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore()
			fill(s, 10, oldKey)
			good, bad := newAPI(t, s, newKey, nil), newAPI(t, s, tc.keyID, nil)
			out, err := migrate.Run(t.Context(), options(t, s, good, bad))
			if !errors.Is(err, migrate.ErrUnproven) || out.Rewritten != 0 || out.Report != nil {
				t.Fatalf("outcome: %+v, %v", out, err)
			}
			if p := out.Servers[0]; !p.OK || p.KeyID != newKey || p.Server != good.http.URL || p.Resource != "secrets" {
				t.Errorf("the first: %+v", p)
			}
			if p := out.Servers[1]; p.OK || p.KeyID != tc.keyID || p.Writes != tc.writes || p.Server != bad.http.URL {
				t.Errorf("the second: %+v", p)
			}
			if s.under("secrets/ns/", oldKey) != 10 || s.under("secrets/default/", newKey)+s.under("secrets/default/", tc.keyID) != 0 {
				t.Error("something was rewritten, or a canary is left")
			}
		})
	}
}

// A server that has not noticed the rotation yet is waited for.
func TestWaits(t *testing.T) {
	t.Parallel()
	s := newStore()
	fill(s, 10, oldKey)
	late := newAPI(t, s, oldKey, nil)
	opts := options(t, s, newAPI(t, s, newKey, nil), late)
	opts.Wait = time.Minute
	var said []string
	opts.Say = func(text string) {
		said = append(said, text)
		late.setKey(newKey)
	}
	out, err := migrate.Run(t.Context(), opts)
	if err != nil || !out.Clean() {
		t.Errorf("outcome: %+v, %v", out, err)
	}
	if len(said) != 1 || !strings.Contains(said[0], late.http.URL+" writes secrets under another key: "+oldKey) {
		t.Errorf("said: %q", said)
	}
}

// An error that waiting cannot cure is not waited for.
func TestFinal(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		before func(w http.ResponseWriter, r *http.Request, n int) bool
		change func(o *migrate.Options)
		says   string
	}{
		"no permission to create": {func(w http.ResponseWriter, r *http.Request, _ int) bool {
			return r.Method == http.MethodPost && answer(w, 403, "Forbidden", "cannot create resource secrets")
		}, nil, "cannot create resource secrets"},
		"no permission to patch": {func(w http.ResponseWriter, r *http.Request, _ int) bool {
			return r.Method == http.MethodPatch && answer(w, 403, "Forbidden", "cannot patch resource secrets")
		}, nil, "cannot patch resource secrets"},
		"no permission to delete": {func(w http.ResponseWriter, r *http.Request, _ int) bool {
			return r.Method == http.MethodDelete && answer(w, 403, "Forbidden", "cannot delete resource secrets")
		}, nil, "removing the canary hsm-kms-canary-"},
		"not logged in": {func(w http.ResponseWriter, r *http.Request, _ int) bool {
			return r.Method != http.MethodGet && answer(w, 401, "Unauthorized", "Unauthorized")
		}, nil, "Unauthorized"},
		"no such namespace": {func(w http.ResponseWriter, r *http.Request, _ int) bool {
			return r.Method == http.MethodPost && answer(w, 404, "NotFound", `namespaces "default" not found`)
		}, nil, "there is no namespace default"},
		"another etcd": {nil, func(o *migrate.Options) { o.Prefixes = []string{"/elsewhere"} }, "not in this etcd"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore()
			fill(s, 10, oldKey)
			opts := options(t, s, newAPI(t, s, newKey, tc.before))
			opts.Wait = time.Hour
			if tc.change != nil {
				tc.change(&opts)
			}
			out, err := migrate.Run(t.Context(), opts)
			if !errors.Is(err, migrate.ErrUnproven) || !strings.Contains(out.Servers[0].Error, tc.says) {
				t.Errorf("outcome: %+v, %v", out, err)
			}
		})
	}
}

// Canaries that a killed run has left are removed by the next, and one that is interrupted leaves none.
func TestCanaries(t *testing.T) {
	t.Parallel()
	s := newStore()
	s.put("secrets/default/hsm-kms-canary-old", oldKey)
	s.put("configmaps/default/hsm-kms-canary-older", oldKey)
	ctx, cancel := context.WithCancel(t.Context())
	a := newAPI(t, s, newKey, func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method == http.MethodPatch { // the canary stands, and is to be rewritten once
			cancel()
		}
		return false
	})
	opts := options(t, s, a)
	opts.Resources = []string{"configmaps", "secrets"}
	out, err := migrate.Run(ctx, opts)
	if !errors.Is(err, context.Canceled) || !out.Interrupted {
		t.Errorf("outcome: %+v, %v", out, err)
	}
	if left := s.all(); len(left) != 0 {
		t.Errorf("left: %s", left[0].Key)
	}
}

// A server that ends in the middle is done without; when none is left, the run ends, and soon.
func TestLost(t *testing.T) {
	t.Parallel()
	dies := func(t *testing.T, s *store) *api {
		return newAPI(t, s, newKey, func(w http.ResponseWriter, r *http.Request, _ int) bool {
			if r.Method == http.MethodPatch && strings.Contains(r.URL.Path, "/ns/") {
				panic(http.ErrAbortHandler) // the connection breaks
			}
			return false
		})
	}
	t.Run("one of two", func(t *testing.T) {
		t.Parallel()
		s := newStore()
		fill(s, 20, oldKey)
		out, err := migrate.Run(t.Context(), options(t, s, dies(t, s), newAPI(t, s, newKey, nil)))
		if err != nil || out.Rewritten != 20 || !out.Clean() {
			t.Errorf("outcome: %+v, %v", out, err)
		}
	})
	t.Run("both", func(t *testing.T) {
		t.Parallel()
		s := newStore()
		fill(s, 20, oldKey)
		out, err := migrate.Run(t.Context(), options(t, s, dies(t, s), dies(t, s)))
		if !errors.Is(err, migrate.ErrLost) || out.Rewritten != 0 || out.Interrupted {
			t.Errorf("outcome: %+v, %v", out, err)
		}
	})
}

// A server that was proven and then takes the old form for the right one is not believed.
func TestLeftAsItWas(t *testing.T) {
	t.Parallel()
	s := newStore()
	fill(s, 3, oldKey)
	a := newAPI(t, s, newKey, nil)
	a.before = func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		if r.Method == http.MethodDelete {
			a.setKey(oldKey)
		}
		return false
	}
	opts := options(t, s, a)
	out, err := migrate.Run(t.Context(), opts)
	if err != nil || out.Rewritten != 0 || out.Failed != 3 || out.Clean() || !strings.Contains(out.Failures[0].Reason, "left it unchanged") {
		t.Errorf("outcome: %+v, %v", out, err)
	}
}

// An existing object that is gone or guarded does not stand in the way while another can be proven with.
func TestSamples(t *testing.T) {
	t.Parallel()
	s := newStore()
	for _, name := range []string{"a", "b", "c"} {
		s.put("example.com/widgets/ns/"+name, newKey)
	}
	a := newAPI(t, s, newKey, func(w http.ResponseWriter, r *http.Request, _ int) bool {
		switch {
		case strings.HasSuffix(r.URL.Path, "/widgets/a"):
			return answer(w, 403, "Forbidden", "denied")
		case strings.HasSuffix(r.URL.Path, "/widgets/b"):
			return answer(w, 404, "NotFound", "gone")
		}
		return false
	})
	opts := options(t, s, a)
	opts.Resources = []string{"widgets.example.com"}
	if out, err := migrate.Run(t.Context(), opts); err != nil || !out.Servers[0].OK || !out.Clean() {
		t.Errorf("outcome: %+v, %v", out, err)
	}
	// One that stands under the key, and which this server would write otherwise, is not taken for proof.
	a.setKey(oldKey)
	if out, err := migrate.Run(t.Context(), opts); !errors.Is(err, migrate.ErrUnproven) || out.Servers[0].KeyID != oldKey {
		t.Errorf("outcome: %+v, %v", out, err)
	}
}

// meddled is an etcd in which somebody else writes an object under the key just before it is looked at.
type meddled struct{ *store }

func (m meddled) Find(ctx context.Context, key string) (evidence.Object, error) {
	m.put(strings.TrimPrefix(key, "/registry/"), newKey)
	return m.store.Find(ctx, key)
}

// A canary that somebody else wrote proves nothing about this server.
func TestSomebodyElse(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"secrets/ns/a", "example.com/widgets/ns/a"} {
		s := newStore()
		s.put(path, oldKey)
		opts := options(t, s, newAPI(t, s, oldKey, nil))
		opts.Sources, opts.Resources = []evidence.Source{meddled{s}}, []string{"secrets", "widgets.example.com"}
		out, err := migrate.Run(t.Context(), opts)
		if !errors.Is(err, migrate.ErrUnproven) || !strings.Contains(out.Servers[0].Error, "somebody else changed") {
			t.Errorf("%s: %+v, %v", path, out, err)
		}
	}
}

// swept is an etcd from which another run removes the first canary before it is looked at.
type swept struct {
	*store
	once *sync.Once
}

func (s swept) Find(ctx context.Context, key string) (evidence.Object, error) {
	s.once.Do(func() { s.remove(strings.TrimPrefix(key, "/registry/")) })
	return s.store.Find(ctx, key)
}

// Two runs at once sweep each other's canaries: that is no sign of another etcd.
func TestSwept(t *testing.T) {
	t.Parallel()
	s := newStore()
	s.put("secrets/ns/a", oldKey)
	opts := options(t, s, newAPI(t, s, newKey, nil))
	opts.Sources, opts.Wait = []evidence.Source{swept{s, &sync.Once{}}}, time.Minute
	out, err := migrate.Run(t.Context(), opts)
	if err != nil || !out.Clean() {
		t.Errorf("%+v, %v", out, err)
	}
}
