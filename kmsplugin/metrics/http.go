package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// Bounds of the server: it is for a scraper and a supervisor, and must not become a way to use memory up.
const (
	maxConnections = 64
	maxHeader      = 8 << 10 // bytes
	headerTimeout  = 2 * time.Second
	readTimeout    = 5 * time.Second
	writeTimeout   = 10 * time.Second
	idleTimeout    = time.Minute
	stopTimeout    = 2 * time.Second
)

// Handler answers /metrics, /livez (live: the process works; the HSM does not count), /readyz (ready: Status would be
// ok; readable: every read ring can be used; hold: on what the plugin lives while the HSM is away, "" while it is not). The
// health checks answer in fixed words: the client was not checked.
func (m *Metrics) Handler(live, ready, readable func() bool, hold func() string) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", Exposition(m.registry))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		if !live() {
			answer(w, http.StatusInternalServerError, "stuck: the log says where; to be restarted")
			return
		}
		answer(w, http.StatusOK, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		switch {
		case !ready():
			answer(w, http.StatusServiceUnavailable, "not ready: hsm-kms status and the log say why")
			return
		case hold() != "":
			answer(w, http.StatusServiceUnavailable, hold())
			return
		case !readable():
			answer(w, http.StatusServiceUnavailable, "a read ring cannot be used: do not restart kube-apiserver here while etcd holds its key_ids; hsm-kms status and the log say why")
			return
		}
		answer(w, http.StatusOK, "ok")
	})
	return mux
}

// Exposition answers with the metrics of a registry. What cannot be gathered is left out.
func Exposition(registry prometheus.Gatherer) http.Handler {
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4, Timeout: readTimeout})
}

func answer(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = fmt.Fprintln(w, text) // the client is gone: nobody to tell
}

// Server is the HTTP server. A nil Server is one that is switched off.
type Server struct {
	listener net.Listener
	server   *http.Server
}

// Listen opens address (host:port) for handler. An empty address switches it off: nil, nil.
func Listen(ctx context.Context, address string, handler http.Handler) (*Server, error) {
	if address == "" {
		return nil, nil
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, hint.Wrap(fmt.Errorf("listening for metrics and health: %w", err), `choose another address or port, or "" for none`)
	}
	return &Server{
		listener: &evictingListener{Listener: listener, most: maxConnections},
		server: &http.Server{
			Handler: marking(handler), ConnContext: withClient, ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout,
			WriteTimeout: writeTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
			ErrorLog: log.New(io.Discard, "", 0), // what a port scanner sends is no news
		},
	}, nil
}

// Addr is where it listens; "" when it is switched off.
func (s *Server) Addr() string {
	if s == nil {
		return ""
	}
	return s.listener.Addr().String()
}

// Run serves until ctx ends, lets requests finish for a moment, and returns what went wrong. Switched off, it
// waits for ctx.
func (s *Server) Run(ctx context.Context) error {
	if s == nil {
		<-ctx.Done()
		return nil
	}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		err := s.server.Shutdown(limit)
		if errors.Is(err, context.DeadlineExceeded) {
			err = s.server.Close()
		}
		stopped <- err
	})
	err := s.server.Serve(s.listener)
	if !errors.Is(err, http.ErrServerClosed) {
		stop()
		return fmt.Errorf("serving metrics: %w", err)
	}
	return <-stopped
}

// retry is the pause between two attempts to open the address.
const retry = 5 * time.Second

// Keep serves handler until it is stopped, also when ctx has ended. An address (host:port) that cannot be opened is tried again
// until it can; an empty one switches it off.
func Keep(ctx context.Context, address string, handler http.Handler, log *slog.Logger) (stop func()) {
	if address == "" {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	listen := func(said string) (*Server, string) {
		server, err := Listen(ctx, address, handler)
		switch {
		case err == nil:
			log.Info("serving metrics and health", "address", server.Addr())
			return server, ""
		case err.Error() != said:
			log.Warn("metrics and health are not served; trying again until they can be", "error", err, "hint", hint.Of(err))
		}
		return nil, err.Error()
	}
	server, said := listen("")
	running.Go(func() {
		for ctx.Err() == nil {
			if server != nil {
				if err := server.Run(ctx); err != nil {
					log.Error("metrics and health are no longer served; trying again", "error", err)
				}
			}
			select {
			case <-ctx.Done():
			case <-time.After(retry):
				server, said = listen(said)
			}
		}
	})
	return func() { cancel(); running.Wait() }
}
