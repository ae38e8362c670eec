package metrics

import (
	"context"
	"net"
	"net/http"
	"slices"
	"sync"
)

// evictingListener always lets the newest connection in. When there are too many, the oldest goes that is not
// being answered, else the oldest. Anybody on the node can connect to a port, and hold what he has connected: with room for
// those who came first, /livez would not answer, and a supervisor would end a plugin that works.
type evictingListener struct {
	net.Listener
	most int

	mu   sync.Mutex // guards the fields below, and answered of each client
	open []*client  // in the order in which they came
}

// client is one connection.
type client struct {
	net.Conn
	listener *evictingListener
	answered int // requests being answered; the listener's mu guards it
}

// Accept waits for the next connection.
func (c *evictingListener) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	g := &client{Conn: conn, listener: c}
	if leaves := c.admit(g); leaves != nil {
		_ = leaves.Close() // a reader or writer there sees an error
	}
	return g, nil
}

// admit counts g in, and returns the connection that has to go for it.
func (c *evictingListener) admit(g *client) (leaves *client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open) >= c.most {
		leaves = c.open[max(0, slices.IndexFunc(c.open, func(g *client) bool { return g.answered == 0 }))]
	}
	c.open = append(c.open, g)
	return leaves
}

// Close closes the connection and counts it out. It may be called again.
func (g *client) Close() error {
	g.listener.mu.Lock()
	g.listener.open = slices.DeleteFunc(g.listener.open, func(o *client) bool { return o == g })
	g.listener.mu.Unlock()
	return g.Conn.Close()
}

func (g *client) answering(by int) {
	g.listener.mu.Lock()
	defer g.listener.mu.Unlock()
	g.answered += by
}

// clientKey is where the context of a request has its *client.
type clientKey struct{}

func withClient(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, clientKey{}, conn)
}

// marking has handler's connections marked while it answers them.
func marking(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if g, ok := r.Context().Value(clientKey{}).(*client); ok {
			g.answering(1)
			defer g.answering(-1)
		}
		handler.ServeHTTP(w, r)
	})
}
