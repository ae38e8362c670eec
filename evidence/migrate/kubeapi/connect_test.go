package kubeapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/hsm-kms/hsm-kms/evidence/migrate"
	"github.com/hsm-kms/hsm-kms/evidence/migrate/kubeapi"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// kubeconfig writes one with a single context.
func kubeconfig(t *testing.T, name, server string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config")
	text := fmt.Sprintf(`{"clusters":[{"name":"x","cluster":{"server":%q}}],"contexts":[{"name":%q,"context":{"cluster":"x"}}],"current-context":%q}`, server, name, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// cluster answers for the endpoints of default/kubernetes.
func cluster(t *testing.T, code int, answer string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		fmt.Fprint(w, answer)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func TestPublished(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		code   int
		answer string
		want   []string
		says   string
	}{
		"three": {
			200, `{"ports":[{"name":"https","port":6443}],"endpoints":[{"addresses":["10.0.0.1"]},{"addresses":["10.0.0.2"]},{"addresses":["fd00::3"]}]}`,
			[]string{"https://10.0.0.1:6443", "https://10.0.0.2:6443", "https://[fd00::3]:6443"}, "",
		},
		"none":          {200, `{"ports":[],"endpoints":[]}`, nil, "publish no addresses"},
		"no port":       {200, `{"ports":[{"name":"https"}],"endpoints":[{"addresses":["10.0.0.1"]}]}`, nil, "publish no addresses"},
		"not there":     {404, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404,"message":"endpointslices \"kubernetes\" not found"}`, nil, `endpointslices "kubernetes" not found`},
		"no permission": {403, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403,"message":"cannot get resource"}`, nil, "cannot get resource"},
		"not JSON":      {200, `<html>`, nil, "decoding"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			servers, err := kubeapi.Connect(t.Context(), kubeapi.Config{Kubeconfig: kubeconfig(t, "x", cluster(t, tc.code, tc.answer))})
			if tc.says != "" {
				if err == nil || !strings.Contains(err.Error(), tc.says) || !strings.Contains(hint.Of(err), "--server https://") {
					t.Errorf("error %v, hint %q", err, hint.Of(err))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, server := range servers {
				names = append(names, server.Name())
			}
			if !slices.Equal(names, tc.want) {
				t.Errorf("servers %q", names)
			}
		})
	}
}

// Addresses that are given are taken as they are, and the cluster is not asked.
func TestGiven(t *testing.T) {
	t.Parallel()
	config := kubeconfig(t, "x", "https://load-balancer.invalid")
	servers, err := kubeapi.Connect(t.Context(), kubeapi.Config{Kubeconfig: config, Servers: []string{"https://10.0.0.1:6443/", "10.0.0.2:6443"}})
	if err != nil || len(servers) != 2 || servers[0].Name() != "https://10.0.0.1:6443" || servers[1].Name() != "https://10.0.0.2:6443" {
		t.Errorf("%v, %v", servers, err)
	}
	for _, bad := range [][]string{{"https://10.0.0.1:6443", "https://10.0.0.1:6443/"}, {"ftp://x"}, {"https://"}, {"https://%"}} {
		if _, err := kubeapi.Connect(t.Context(), kubeapi.Config{Kubeconfig: config, Servers: bad}); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	for _, cfg := range []kubeapi.Config{{Kubeconfig: config, Context: "other"}, {Kubeconfig: filepath.Join(t.TempDir(), "none")}} {
		if _, err := kubeapi.Connect(t.Context(), cfg); err == nil || !strings.Contains(hint.Of(err), "--kubeconfig") {
			t.Errorf("%+v: %v, hint %q", cfg, err, hint.Of(err))
		}
	}
}

// Credentials of the kubeconfig are sent in clear to no other machine, and nothing is asked there.
func TestNoHTTPBeyondThisMachine(t *testing.T) {
	t.Parallel()
	dialled := errors.New("dialled")
	cfg := kubeapi.Config{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, dialled }}
	secure := kubeconfig(t, "x", "https://load-balancer.invalid")
	for address, refused := range map[string]bool{
		"http://10.0.0.1:6443": true, "http://server:6443": true, "http://localhost.example.com": true, "http://[2001:db8::1]:6443": true,
		"http://127.0.0.1:8001": false, "http://[::1]:8001": false, "http://localhost:8001": false, "https://10.0.0.1:6443": false,
	} {
		t.Run(address, func(t *testing.T) {
			t.Parallel()
			given, own := cfg, cfg
			given.Kubeconfig, given.Servers = secure, []string{address}
			own.Kubeconfig = kubeconfig(t, "x", address)
			if _, err := kubeapi.Connect(t.Context(), given); (err != nil) != refused || refused && (!strings.Contains(err.Error(), "begin with https://") || !strings.Contains(hint.Of(err), "https://HOST:PORT")) {
				t.Errorf("--server: %v, hint %q", err, hint.Of(err))
			}
			if _, err := kubeapi.ClusterUID(t.Context(), own); errors.Is(err, dialled) == refused {
				t.Errorf("of the kubeconfig: %v", err)
			}
		})
	}
}

// A proxy may be on another machine: it gets no credentials in clear either, and no error has a password of an address.
func TestNoHTTPThroughProxy(t *testing.T) {
	t.Parallel()
	proxy := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("the proxy was asked for %s with %q", r.URL, r.Header.Get("Authorization"))
	}))
	t.Cleanup(proxy.Close)
	config := filepath.Join(t.TempDir(), "config")
	text := fmt.Sprintf(`{"clusters":[{"name":"x","cluster":{"server":"https://x.invalid","proxy-url":%q}}],"users":[{"name":"x","user":{"token":"t"}}],
		"contexts":[{"name":"x","context":{"cluster":"x","user":"x"}}],"current-context":"x"}`, proxy.URL)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"http://127.0.0.1:8001", "http://localhost:8001", "http://me:secret@10.0.0.1:6443"} {
		servers, err := kubeapi.Connect(t.Context(), kubeapi.Config{Kubeconfig: config, Servers: []string{address}})
		if err == nil {
			_ = servers[0].Ready(t.Context())
		}
		if err == nil || !strings.Contains(err.Error(), "sent in clear") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// A certificate that is not trusted, or for another name, is no outage that passes.
func TestUntrusted(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	servers, err := kubeapi.Connect(t.Context(), kubeapi.Config{Kubeconfig: kubeconfig(t, "x", server.URL), Servers: []string{server.URL}})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = servers[0].Plant(t.Context(), "secrets", "default")
	if err == nil || errors.Is(err, migrate.ErrUnreachable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("untrusted: %v", err)
	}
	server.Close()
	if _, _, err = servers[0].Plant(t.Context(), "secrets", "default"); !errors.Is(err, migrate.ErrUnreachable) {
		t.Errorf("closed: %v", err)
	}
}

// A load balancer's address alone shows: the cluster publishes more.
func TestCount(t *testing.T) {
	t.Parallel()
	three := `{"ports":[{"port":6443}],"endpoints":[{"addresses":["10.0.0.1"]},{"addresses":["10.0.0.2"]},{"addresses":["10.0.0.3"]}]}`
	cfg := kubeapi.Config{Kubeconfig: kubeconfig(t, "x", cluster(t, 200, three)), Servers: []string{"https://10.0.0.9"}}
	if n, err := kubeapi.Published(t.Context(), cfg); n != 3 || err != nil {
		t.Errorf("%d published, %v", n, err)
	}
	cfg.Kubeconfig = kubeconfig(t, "x", cluster(t, 403, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}`))
	if _, err := kubeapi.Published(t.Context(), cfg); err == nil {
		t.Error("no permission, and no error")
	}
}

// Texts of an API server are cut short and made safe to show.
func TestHostileWords(t *testing.T) {
	t.Parallel()
	const long = 100_000
	message, err := json.Marshal("\x1b[2J" + strings.Repeat("x", long))
	if err != nil {
		t.Fatal(err)
	}
	said := fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","status":"Failure","code":403,"reason":%q,"message":%s,"details":{"causes":[{"message":%s}]}}`,
		strings.Repeat("y", long), message, message)
	_, err = kubeapi.Connect(t.Context(), kubeapi.Config{Kubeconfig: kubeconfig(t, "x", cluster(t, 403, said))})
	if err == nil || strings.Contains(err.Error(), "\x1b") || len(err.Error()) > 2000 || !strings.Contains(err.Error(), `\x1b[2Jxxx`) {
		t.Errorf("%.300v", err)
	}
	status, ok := errors.AsType[*apierrors.StatusError](err)
	if kept, _ := json.Marshal(status); !ok || len(kept) > 2000 {
		t.Errorf("%d bytes are kept", len(kept))
	}
}

// {} from a proxy is no empty list: canaries of an earlier run, API servers or groups might be there.
func TestNoList(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{}`)
	}))
	t.Cleanup(server.Close)
	servers, err := kubeapi.Connect(t.Context(), kubeapi.Config{Kubeconfig: kubeconfig(t, "x", server.URL), Servers: []string{server.URL}})
	if err != nil {
		t.Fatal(err)
	}
	if planted, err := servers[0].Planted(t.Context(), "secrets", "default"); !errors.Is(err, migrate.ErrBadAnswer) {
		t.Errorf("planted: %+v, %v", planted, err)
	}
}

// An object with our label and not our name is somebody else's, and is not deleted.
func TestPlanted(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"kind":"List","items":[{"metadata":{"name":"precious"}},{"metadata":{"name":"hsm-kms-canary-x2x"}}]}`)
	}))
	t.Cleanup(server.Close)
	servers, err := kubeapi.Connect(t.Context(), kubeapi.Config{Kubeconfig: kubeconfig(t, "x", server.URL), Servers: []string{server.URL}})
	if err != nil {
		t.Fatal(err)
	}
	planted, err := servers[0].Planted(t.Context(), "secrets", "default")
	want := []migrate.Object{{Resource: "secrets", Namespace: "default", Name: "hsm-kms-canary-x2x"}}
	if err != nil || !slices.Equal(planted, want) {
		t.Errorf("planted: %+v, %v", planted, err)
	}
}

// An API server that sends us elsewhere is not followed: what another one writes would prove nothing about this one.
func TestRedirect(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("it was followed: %s %s", r.Method, r.URL) }))
	defer other.Close()
	for _, code := range []int{301, 302, 303, 307, 308} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL+r.URL.Path, code) }))
		servers, err := kubeapi.Connect(t.Context(), kubeapi.Config{Kubeconfig: kubeconfig(t, "x", server.URL), Servers: []string{server.URL}})
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = servers[0].Plant(t.Context(), "secrets", "hsm-kms")
		if ready := servers[0].Ready(t.Context()); !errors.Is(err, migrate.ErrBadAnswer) || !errors.Is(ready, migrate.ErrBadAnswer) {
			t.Errorf("%d: %v, %v", code, err, ready)
		}
		server.Close()
	}
}
