package kubeapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/hsm-kms/hsm-kms/evidence/migrate"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// AdminKubeconfig is where kubeadm puts an administrator's.
const AdminKubeconfig = "/etc/kubernetes/admin.conf"

// requestTimeout bounds one request, admission webhooks (30 s at most each) included.
const requestTimeout = 60 * time.Second

// Config says how to reach the API servers.
type Config struct {
	Kubeconfig string   // file; empty: $KUBECONFIG, ~/.kube/config, AdminKubeconfig, whichever is first
	Context    string   // in it; empty: the current one
	Servers    []string // addresses of every API server; empty: ask the cluster
	ServerName string   // in their certificates; empty: the kubeconfig's, or their address
	UserAgent  string
	Dial       func(ctx context.Context, network, address string) (net.Conn, error) // nil: TCP
	// Answered, if it is not nil, is called for each answer with its HTTP status; 0: no answer came. It is called from any
	// number of goroutines.
	Answered func(status int)
}

// Connect makes a client for each API server, addressed directly. Only the addresses are asked for, and only when none
// are given. Errors have hints.
func Connect(ctx context.Context, cfg Config) ([]*Server, error) {
	base, err := load(cfg)
	if err != nil {
		return nil, hint.Wrap(fmt.Errorf("reading the kubeconfig: %w", err), "give --kubeconfig FILE (kubeadm: "+AdminKubeconfig+") and, if need be, --context")
	}
	addresses := cfg.Servers
	if len(addresses) == 0 {
		if addresses, err = published(ctx, base); err != nil {
			return nil, hint.Wrap(err, "give the address of every API server: --server https://10.0.0.1:6443 --server ...; that of a load balancer proves nothing about those behind it")
		}
	}
	mapper := newMapper()
	var servers []*Server
	for _, address := range addresses {
		server, err := newServer(base, address, cfg.ServerName, mapper)
		if err != nil {
			return nil, hint.Wrap(err, "give --server as https://HOST:PORT")
		}
		if slices.ContainsFunc(servers, func(s *Server) bool { return s.name == server.name }) {
			return nil, fmt.Errorf("--server: %s is given twice", server.name)
		}
		servers = append(servers, server)
	}
	return servers, nil
}

// countTimeout bounds a question whose answer is only good to have.
const countTimeout = 5 * time.Second

// Published counts the API servers that the cluster publishes, for a caller that was given their addresses. The error is
// why nobody knows: no permission, or nobody answers at the kubeconfig's own address.
func Published(ctx context.Context, cfg Config) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, countTimeout)
	defer cancel()
	base, err := load(cfg)
	if err != nil {
		return 0, err
	}
	addresses, err := published(ctx, base)
	return len(addresses), err
}

// load reads the kubeconfig as kubectl does, with kubeadm's as the last to be looked for.
func load(cfg Config) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = cfg.Kubeconfig
	rules.WarnIfAllMissing = false
	missing := func(path string) bool { _, err := os.Stat(path); return err != nil }
	if cfg.Kubeconfig == "" && os.Getenv(clientcmd.RecommendedConfigPathEnvVar) == "" && !slices.ContainsFunc(rules.Precedence, func(p string) bool { return !missing(p) }) {
		rules.Precedence = append(rules.Precedence, AdminKubeconfig)
	}
	base, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: cfg.Context}).ClientConfig()
	if clientcmd.IsEmptyConfig(err) { // its words advise to set a variable
		return nil, errors.New("none of these names a cluster: " + strings.Join(rules.GetLoadingPrecedence(), ", "))
	}
	if err != nil {
		return nil, err
	}
	// The scheme knows Status, for errors, and nothing else: what is asked for is decoded here.
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	base.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	base.GroupVersion = &schema.GroupVersion{}
	base.ContentType = runtime.ContentTypeJSON
	base.QPS = -1 // the caller keeps a pace
	base.Timeout = requestTimeout
	base.WarningHandler = rest.NoWarnings{}
	base.UserAgent = cfg.UserAgent
	base.Dial = cfg.Dial
	base.Wrap(func(next http.RoundTripper) http.RoundTripper { return limited{next, cfg.Answered} })
	return base, nil
}

// clientOf makes a client for the address that cfg has. To http:// beyond this machine, or through a proxy, it is refused:
// kubectl sends no credentials there, and client-go does if the kubeconfig had them for another address. Anyone on the way
// could also answer.
func clientOf(cfg *rest.Config) (rest.Interface, error) {
	at, _, err := rest.DefaultServerUrlFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("%q is not an address of an API server: %w", cfg.Host, err)
	}
	host := at.Hostname()
	here := cfg.Proxy == nil && (host == "localhost" || net.ParseIP(host).IsLoopback()) // a proxy of the environment gets nothing for these
	if at.Scheme != "https" && !here {
		return nil, hint.Wrap(fmt.Errorf("%s does not begin with https://, and is not on this machine or lies behind a proxy: credentials would be sent in clear", at.Redacted()), "give the address as https://HOST:PORT")
	}
	client, err := rest.UnversionedRESTClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("making a client for %s: %w", cfg.Host, err)
	}
	return client, nil
}

// published are the addresses under which the API servers say that they are reached: the endpoints of the Service
// default/kubernetes, one for each API server.
func published(ctx context.Context, base *rest.Config) ([]string, error) {
	const path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes"
	client, err := clientOf(base)
	if err != nil {
		return nil, fmt.Errorf("using the kubeconfig: %w", err)
	}
	data, err := do(ctx, client.Get().AbsPath(path))
	if err != nil {
		return nil, fmt.Errorf("asking %s for the addresses of the API servers (endpointslice default/kubernetes): %w", base.Host, err)
	}
	var slice discoveryv1.EndpointSlice
	if err := json.Unmarshal(data, &slice); err != nil {
		return nil, fmt.Errorf("decoding the endpointslice default/kubernetes: %w", err)
	}
	var addresses []string
	for _, port := range slice.Ports {
		if port.Port == nil {
			continue
		}
		for _, endpoint := range slice.Endpoints {
			for _, host := range endpoint.Addresses {
				if len(addresses) == maxServers {
					return nil, fmt.Errorf("%w: the cluster publishes more than %d API servers", migrate.ErrBadAnswer, maxServers)
				}
				addresses = append(addresses, "https://"+net.JoinHostPort(host, strconv.Itoa(int(*port.Port))))
			}
		}
	}
	if len(addresses) == 0 {
		return nil, errors.New("the API servers publish no addresses (endpointslice default/kubernetes is empty)")
	}
	return addresses, nil
}

// newServer makes the client of one API server: the kubeconfig's identity and CA, at another address.
func newServer(base *rest.Config, address, serverName string, mapper *mapper) (*Server, error) {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	if u, err := url.Parse(address); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fmt.Errorf("%q is not an address of an API server", address)
	}
	cfg := rest.CopyConfig(base)
	cfg.Host = address
	if serverName != "" {
		cfg.ServerName = serverName
	}
	client, err := clientOf(cfg)
	if err != nil {
		return nil, err
	}
	return &Server{name: strings.TrimSuffix(address, "/"), client: client, mapper: mapper}, nil
}
