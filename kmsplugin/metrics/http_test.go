package metrics

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// serve runs a server until the test ends and returns its address.
func serve(t *testing.T, live, ready func() bool) string {
	t.Helper()
	return serveReading(t, live, ready, func() bool { return true })
}

func serveReading(t *testing.T, live, ready, readable func() bool) string {
	t.Helper()
	return serveHolding(t, live, ready, readable, func() string { return "" })
}

func serveHolding(t *testing.T, live, ready, readable func() bool, hold func() string) string {
	t.Helper()
	m, _ := full()
	s, err := Listen(t.Context(), "127.0.0.1:0", m.Handler(live, ready, readable, hold))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s.Addr()
}

func request(t *testing.T, method, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestPaths(t *testing.T) {
	t.Parallel()
	var ready, stuck atomic.Bool
	base := "http://" + serve(t, func() bool { return !stuck.Load() }, ready.Load)
	for _, tc := range []struct {
		ready        bool
		method, path string
		code         int
		body         string
	}{
		{false, "GET", "/livez", 200, "ok\n"},
		{false, "GET", "/readyz", 503, "not ready: hsm-kms status and the log say why\n"},
		{true, "GET", "/readyz", 200, "ok\n"},
		{true, "HEAD", "/readyz", 200, ""},
		{true, "GET", "/metrics", 200, `hsm_kms_build_info{commit="abc",`},
		{true, "GET", "/", 404, ""},
		{true, "GET", "/debug/pprof/", 404, ""},
		{true, "GET", "/metrics/x", 404, ""},
		{true, "POST", "/livez", 405, ""},
	} {
		ready.Store(tc.ready)
		code, body := request(t, tc.method, base+tc.path)
		if code != tc.code || !strings.Contains(body, tc.body) {
			t.Errorf("%s %s: %d %.200q, want %d %q", tc.method, tc.path, code, body, tc.code, tc.body)
		}
	}
	stuck.Store(true)
	if code, body := request(t, "GET", base+"/livez"); code != 500 || body != "stuck: the log says where; to be restarted\n" {
		t.Errorf("stuck: %d %q", code, body)
	}
}

func TestHeaderLimit(t *testing.T) {
	t.Parallel()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", serve(t, func() bool { return true }, func() bool { return true }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	// The server may hang up before it has read all of it.
	go func() {
		_, _ = io.WriteString(conn, "GET /livez HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 64<<10)+"\r\n\r\n")
	}()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.Contains(line, "431") {
		t.Errorf("%q, %v; want 431", line, err)
	}
}

// A client that holds connections, with nothing sent, half a request, or a whole one and the answer not read, leaves /livez and
// /metrics to others: a supervisor ends a plugin that does not answer.
func TestOthersHoldConnections(t *testing.T) {
	t.Parallel()
	address := serve(t, func() bool { return true }, func() bool { return true })
	for i := range 4 * maxConnections {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, []string{"", "GET /livez HTTP/1.1\r\nHost: x\r\n", "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"}[i%3])
	}
	start := time.Now()
	for _, path := range []string{"/livez", "/metrics"} {
		if code, _ := request(t, "GET", "http://"+address+path); code != 200 {
			t.Errorf("%s: %d", path, code)
		}
	}
	if took := time.Since(start); took > headerTimeout/2 {
		t.Errorf("it took %s: they were waited for", took)
	}
}

// The newest is let in for the oldest that is not being answered, and if all are, for the oldest.
func TestEvictingListener(t *testing.T) {
	t.Parallel()
	c := &evictingListener{most: 3}
	var clients []*client
	enter := func() *client {
		conn, other := net.Pipe()
		t.Cleanup(func() { _ = other.Close() })
		clients = append(clients, &client{Conn: conn, listener: c})
		return c.admit(clients[len(clients)-1])
	}
	for range 3 {
		if leaves := enter(); leaves != nil {
			t.Fatal("one had to go with room for all")
		}
	}
	clients[0].answering(1)
	if leaves := enter(); leaves != clients[1] || leaves.Close() != nil {
		t.Fatal("not the oldest that is not being answered")
	}
	clients[2].answering(1)
	clients[3].answering(1)
	if leaves := enter(); leaves != clients[0] || leaves.Close() != nil {
		t.Fatal("not the oldest, with all being answered")
	}
	_ = clients[0].Close() // again
	if len(c.open) != 3 {
		t.Errorf("%d are counted", len(c.open))
	}
}

func TestListen(t *testing.T) {
	t.Parallel()
	first, err := Listen(t.Context(), "127.0.0.1:0", http.NotFoundHandler())
	if err != nil {
		t.Fatal(err)
	}
	defer first.listener.Close()
	if _, err := Listen(t.Context(), first.Addr(), http.NotFoundHandler()); err == nil || hint.Of(err) == "" {
		t.Errorf("a taken port: err = %v, hint %q", err, hint.Of(err))
	}

	off, err := Listen(t.Context(), "", http.NotFoundHandler())
	if off != nil || err != nil {
		t.Fatalf("off: %v, %v", off, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := off.Run(ctx); err != nil || off.Addr() != "" {
		t.Errorf("off: %v, %q", err, off.Addr())
	}
}
