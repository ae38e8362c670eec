package migrate_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/evidence/migrate"
)

// flood writes until nobody reads any more, or 64 MiB were written.
func flood(w http.ResponseWriter, head, part string) bool {
	w.Header().Set("Content-Type", "application/json")
	if _, err := fmt.Fprint(w, head); err != nil {
		return true
	}
	part = strings.Repeat(part, 64<<10/len(part)+1)
	for range 1024 {
		if _, err := fmt.Fprint(w, part); err != nil {
			return true
		}
	}
	return true
}

// page answers with a list of canaries that goes on at token.
func page(w http.ResponseWriter, token, name string) bool {
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "List", "metadata": map[string]any{"continue": token}, "items": []any{map[string]any{"metadata": map[string]any{"name": name}}}})
	return true
}

// hostileServer is one way not to be an API server.
type hostileServer struct {
	before   func(w http.ResponseWriter, r *http.Request, n int) bool
	says     string
	requests int // at most
}

// secrets is where canaries are.
const secrets = "/api/v1/namespaces/default/secrets"

func hostileServers() map[string]hostileServer {
	is := func(r *http.Request, method, path string) bool { return r.Method == method && r.URL.Path == path }
	return map[string]hostileServer{
		"a list in a circle": {func(w http.ResponseWriter, r *http.Request, _ int) bool {
			return is(r, "GET", secrets) && page(w, "again", "other")
		}, "a circular list", 5},
		"a list in a wider circle": {func(w http.ResponseWriter, r *http.Request, n int) bool {
			return is(r, "GET", secrets) && page(w, fmt.Sprint(n%3), "other")
		}, "a circular list", 8},
		"a list without an end": {func(w http.ResponseWriter, r *http.Request, n int) bool {
			return is(r, "GET", secrets) && page(w, fmt.Sprint(n), "other")
		}, "more than 200 pages", 203},
		"a page of 64 MiB": {func(w http.ResponseWriter, r *http.Request, _ int) bool {
			return is(r, "GET", secrets) && flood(w, `{"kind":"List","items":[{"metadata":{"name":"x"}}`, `,{"metadata":{"name":"hsm-kms-canary-x"}}`)
		}, "has more than 8388608 bytes", 3},
		"discovery without an end": {func(w http.ResponseWriter, r *http.Request, _ int) bool {
			return is(r, "GET", "/api/v1") && flood(w, `{"resources":[{"name":"x"}`, `,{"name":"x"}`)
		}, "has more than 8388608 bytes", 1},
		"an object without an end": {func(w http.ResponseWriter, r *http.Request, _ int) bool {
			return r.Method == "PATCH" && flood(w, `{"metadata":{"name":"x","annotations":{"x":"`, "x")
		}, "has more than 8388608 bytes", 6},
		"an object without an end, when all servers are proven": {func(w http.ResponseWriter, r *http.Request, _ int) bool {
			return r.Method == "PATCH" && strings.Contains(r.URL.Path, "/ns/") && flood(w, `{"metadata":{"name":"x","annotations":{"x":"`, "x")
		}, "has more than 8388608 bytes", 8},
		"an error without an end": {func(w http.ResponseWriter, r *http.Request, _ int) bool {
			if r.Method == "PATCH" {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(500)
			}
			return r.Method == "PATCH" && flood(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":500,"message":"`, "x")
		}, "has more than 8388608 bytes", 6},
		"a canary that is somewhere else": {func(w http.ResponseWriter, r *http.Request, _ int) bool {
			if is(r, "POST", secrets) {
				_ = json.NewEncoder(w).Encode(map[string]any{"metadata": map[string]any{"name": "../configmaps/precious", "resourceVersion": "1"}})
			}
			return is(r, "POST", secrets)
		}, "does not have the name of one", 4},
		"not JSON": {func(w http.ResponseWriter, r *http.Request, _ int) bool {
			if is(r, "GET", "/api/v1") {
				fmt.Fprint(w, "<html>")
			}
			return is(r, "GET", "/api/v1")
		}, "decoding what is served", 1},
	}
}

// Whatever answers in an API server's place: the work ends soon, with a clear error, in bounded memory, and nothing is
// deleted that is not ours.
func TestHostileServer(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	for name, tc := range hostileServers() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore()
			fill(s, 3, oldKey)
			a := newAPI(t, s, newKey, tc.before)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			out, err := migrate.Run(ctx, options(t, s, a))
			if !errors.Is(err, migrate.ErrBadAnswer) || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "retry") || len(err.Error()) > 1000 {
				t.Fatalf("%.300v: %+v", err, out)
			}
			if n := a.requests("") - a.requests("DELETE"); n > tc.requests {
				t.Errorf("%d requests", n)
			}
			if n := a.requests("DELETE " + secrets + "/hsm-kms-canary-"); n != a.requests("DELETE") {
				t.Error("something was deleted that is no canary")
			}
		})
	}
}

// A server that lists names that lead elsewhere does not have us delete what is there.
func TestNamesThatLeadElsewhere(t *testing.T) {
	t.Parallel()
	s := newStore()
	fill(s, 3, oldKey)
	a := newAPI(t, s, newKey, func(w http.ResponseWriter, r *http.Request, _ int) bool {
		return r.Method == "GET" && strings.HasSuffix(r.URL.Path, "/secrets") && page(w, "", "hsm-kms-canary-x/../../configmaps/precious")
	})
	if out, err := migrate.Run(t.Context(), options(t, s, a)); err != nil || !out.Clean() {
		t.Errorf("%+v, %v", out, err)
	}
	if n := a.requests("DELETE"); n != a.requests("DELETE /api/v1/namespaces/default/secrets/hsm-kms-canary-") || n != 1 {
		t.Errorf("%d deleted", n)
	}
}

// Reasons of 256 KiB each, of 16 objects that fail, are kept in short.
func TestLongReasons(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	s := newStore()
	fill(s, 16, oldKey)
	long := strings.Repeat("x", 1<<18)
	a := newAPI(t, s, newKey, func(w http.ResponseWriter, r *http.Request, _ int) bool {
		return r.Method == http.MethodPatch && strings.Contains(r.URL.Path, "/ns/") && answer(w, 422, "Invalid", long)
	})
	before := heap()
	out, err := migrate.Run(t.Context(), options(t, s, a))
	if err != nil || len(out.Failures) != 16 {
		t.Fatalf("%d failures, %v", len(out.Failures), err)
	}
	if grown := heap() - before; grown > 2<<20 {
		t.Errorf("%d bytes are kept", grown)
	}
	for _, f := range out.Failures {
		if len(f.Reason) > 4096 {
			t.Fatalf("a reason of %d bytes", len(f.Reason))
		}
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc) //nolint:gosec // far below
}

// How long to wait is not for an API server to say.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	s := newStore()
	fill(s, 3, oldKey)
	a := newAPI(t, s, newKey, func(w http.ResponseWriter, r *http.Request, n int) bool {
		if isA(r) && n == 1 {
			w.Header().Set("Retry-After", "3600")
			return answer(w, 429, "TooManyRequests", "slow down")
		}
		return false
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if out, err := migrate.Run(ctx, options(t, s, a)); err != nil || out.Rewritten != 3 {
		t.Errorf("%+v, %v", out, err)
	}
}
