package metrics

import (
	"context"
	"net"
	"net/http"
	"slices"
	"sync"
)

// crowd is a listener that always lets the newest connection in: when there are too many, the oldest goes that is not
// being answered, else the oldest. Anybody on the node can connect to a port, and hold what he has connected: with room for
// those who came first, /livez would not answer, and a supervisor would end a plugin that works.
type crowd struct {
	net.Listener
	most int

	mu   sync.Mutex
	open []*guest // in the order in which they came
}

// guest is one connection.
type guest struct {
	net.Conn
	crowd    *crowd
	answered int // requests being answered, under the crowd's lock
}

// Accept waits for the next connection.
func (c *crowd) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	g := &guest{Conn: conn, crowd: c}
	if leaves := c.admit(g); leaves != nil {
		_ = leaves.Close() // a reader or writer there sees an error
	}
	return g, nil
}

// admit counts g in, and returns the connection that has to go for it.
func (c *crowd) admit(g *guest) (leaves *guest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open) >= c.most {
		leaves = c.open[max(0, slices.IndexFunc(c.open, func(g *guest) bool { return g.answered == 0 }))]
	}
	c.open = append(c.open, g)
	return leaves
}

// Close closes the connection and counts it out. It may be called again.
func (g *guest) Close() error {
	g.crowd.mu.Lock()
	g.crowd.open = slices.DeleteFunc(g.crowd.open, func(o *guest) bool { return o == g })
	g.crowd.mu.Unlock()
	return g.Conn.Close()
}

func (g *guest) answering(by int) {
	g.crowd.mu.Lock()
	defer g.crowd.mu.Unlock()
	g.answered += by
}

// guestKey is where the context of a request has its *guest.
type guestKey struct{}

func withGuest(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, guestKey{}, conn)
}

// marking has handler's connections marked while it answers them.
func marking(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if g, ok := r.Context().Value(guestKey{}).(*guest); ok {
			g.answering(1)
			defer g.answering(-1)
		}
		handler.ServeHTTP(w, r)
	})
}
