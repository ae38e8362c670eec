// Package sources opens what the commands on etcd read: the etcds of a cluster, or snapshots of one. It depends on evidence, on
// evidence/live and evidence/snapshot, which it opens, on envelope/stored and on hint, and on nothing of the HSM. Options are set
// once, and used by one goroutine.
package sources

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/live"
	"github.com/hsm-kms/hsm-kms/evidence/snapshot"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// The defaults of etcdctl and of kube-apiserver, and where kubeadm puts a control-plane node's files.
const (
	DefaultEndpoint    = "127.0.0.1:2379"
	kubeadmEndpoint    = "https://127.0.0.1:2379"
	DefaultPrefix      = "/registry"
	kubeadmCA          = "/etc/kubernetes/pki/etcd/ca.crt"
	kubeadmCertificate = "/etc/kubernetes/pki/apiserver-etcd-client.crt"
	kubeadmKey         = "/etc/kubernetes/pki/apiserver-etcd-client.key"
)

// Options say what to read, as the flags of the commands do.
type Options struct {
	Endpoints                 []string
	CAFile, CertFile, KeyFile string
	Overrides                 []string // as kube-apiserver's --etcd-servers-overrides
	Prefixes                  []string
	Layouts                   []string // RESOURCE=PREFIX
	Snapshots                 []string // files; none: etcd is read
}

// openshift is what --resource-path takes for all resources of OpenShift's own API servers.
const openshift = "openshift"

// Read returns the prefixes, and where each resource is below them.
func (o *Options) Read() (prefixes []string, known *stored.Resources, err error) {
	for _, prefix := range o.Prefixes {
		cleaned := evidence.CleanPrefix(prefix)
		if strings.TrimSpace(cleaned) != cleaned || cleaned == "/" {
			return nil, nil, hint.Wrap(fmt.Errorf("--prefix: %q is no prefix", prefix), "give kube-apiserver's --etcd-prefix, such as "+DefaultPrefix)
		}
		prefixes = append(prefixes, cleaned)
	}
	var layouts []stored.Layout
	for _, text := range o.Layouts {
		more, err := layoutOf(text)
		if err != nil {
			return nil, nil, err
		}
		layouts = append(layouts, more...)
	}
	if err := o.below(prefixes, layouts); err != nil {
		return nil, nil, err
	}
	if known, err = stored.NewResources(layouts...); err != nil {
		return nil, nil, hint.Wrap(fmt.Errorf("--resource-path: %w", err), "give each resource the prefix of its own keys")
	}
	for _, prefix := range prefixes {
		path, inside := evidence.PathOf(prefixes, []byte(prefix))
		if place := known.Of([]byte(prefix+"/"), append(slices.Clone(path), '/')); inside && place.Known {
			return nil, nil, hint.Wrap(fmt.Errorf("--prefix: %s is inside another prefix, where %s are", prefix, place.Resource), "name the prefixes alone, each as an API server's --etcd-prefix has it")
		}
	}
	return prefixes, known, nil
}

// below: each layout is below a prefix, or nothing there would be read; and no prefix is in a layout, or everything of that
// API server would be taken for one resource.
func (o *Options) below(prefixes []string, layouts []stored.Layout) error {
	for _, l := range layouts {
		if _, below := evidence.PathOf(prefixes, []byte(l.Prefix)); !below {
			advice := "name the prefix too: --prefix " + strings.Join(o.Prefixes, ",") + ",/OTHER"
			if slices.Contains(o.Layouts, openshift) {
				advice = "OpenShift has two prefixes: --prefix /kubernetes.io," + stored.OpenShiftPrefix
			}
			return hint.Wrap(fmt.Errorf("--resource-path: %s is not below --prefix (%s), so nothing there is read", l.Prefix, strings.Join(prefixes, ", ")), advice)
		}
		for _, prefix := range prefixes {
			if prefix == l.Prefix || strings.HasPrefix(prefix, l.Prefix+"/") {
				return hint.Wrap(fmt.Errorf("--resource-path: %s has all of --prefix %s, and everything there would be taken for %s", l.Prefix, prefix, l.Resource), "give each resource the prefix of its own keys")
			}
		}
	}
	return nil
}

// layoutOf reads one --resource-path.
func layoutOf(text string) ([]stored.Layout, error) {
	if text == openshift {
		return stored.OpenShift(), nil
	}
	resource, prefix, found := strings.Cut(text, "=")
	wrong := errors.New("the form is RESOURCE=PREFIX, or " + openshift)
	switch {
	case !found || !strings.HasPrefix(prefix, "/") || evidence.CleanPrefix(prefix) == "/":
	case stored.IsWildcard(resource):
		wrong = errors.New("it must name one resource")
	default:
		if wrong = stored.CheckEntry(resource); wrong == nil {
			return []stored.Layout{{Resource: resource, Prefix: evidence.CleanPrefix(prefix)}}, nil
		}
	}
	return nil, hint.Wrap(fmt.Errorf("--resource-path %q: %w", text, wrong), "such as --resource-path routes.route.openshift.io=/openshift.io/routes")
}

// withKubeadm fills in kubeadm's files where nothing was said and they are there.
func (o *Options) withKubeadm() {
	if o.CAFile != "" || o.CertFile != "" {
		return
	}
	plain := slices.ContainsFunc(o.Endpoints, func(e string) bool { return strings.HasPrefix(e, "http://") || strings.HasPrefix(e, "unix:") })
	for _, file := range []string{kubeadmCA, kubeadmCertificate, kubeadmKey} {
		if _, err := os.Stat(file); err != nil || plain {
			return
		}
	}
	o.CAFile, o.CertFile, o.KeyFile = kubeadmCA, kubeadmCertificate, kubeadmKey
	if slices.Equal(o.Endpoints, []string{DefaultEndpoint}) {
		o.Endpoints = []string{kubeadmEndpoint}
	}
}

// Open opens what the flags name. The caller closes.
func (o *Options) Open(ctx context.Context, progress evidence.Progress) (sources []evidence.Source, closeAll func() error, err error) {
	var closers []func() error
	closeAll = func() error {
		var errs []error
		for _, end := range closers {
			errs = append(errs, end())
		}
		return errors.Join(errs...)
	}
	prefixes, _, err := o.Read()
	if err != nil {
		return nil, nil, err
	}
	for _, path := range o.Snapshots {
		file, err := snapshot.Open(path, snapshot.Options{Prefixes: prefixes, Progress: progress})
		if err != nil {
			return nil, nil, errors.Join(err, closeAll())
		}
		sources, closers = append(sources, file), append(closers, file.Close)
	}
	if len(o.Snapshots) > 0 {
		return sources, closeAll, nil
	}
	o.withKubeadm()
	clusters, err := o.clusters()
	if err != nil {
		return nil, nil, err
	}
	var etcds []*live.Etcd
	for _, endpoints := range clusters {
		etcd, err := live.Open(live.Config{
			Endpoints: endpoints, CAFile: o.CAFile, CertFile: o.CertFile, KeyFile: o.KeyFile, Prefixes: prefixes, Progress: progress,
		})
		if err != nil {
			return nil, nil, errors.Join(err, closeAll())
		}
		sources, closers = append(sources, etcd), append(closers, etcd.Close)
		for j, other := range etcds {
			if live.Same(ctx, other, etcd) {
				err := hint.Wrap(fmt.Errorf("%s and %s are one etcd: each of its objects would be counted twice", strings.Join(clusters[j], ","), strings.Join(endpoints, ",")),
					"leave it out of --etcd-servers-overrides, or name it there as --endpoints names it")
				return nil, nil, errors.Join(err, closeAll())
			}
		}
		etcds = append(etcds, etcd)
	}
	return sources, closeAll, nil
}

// clusters are the endpoints of each etcd: the main one, and the overrides', each once. Lists that share an endpoint are of one.
func (o *Options) clusters() ([][]string, error) {
	clusters := [][]string{o.Endpoints}
	for _, override := range o.Overrides {
		resource, servers, found := strings.Cut(override, "#")
		if !found || !strings.Contains(resource, "/") || servers == "" {
			return nil, hint.Wrap(fmt.Errorf("--etcd-servers-overrides: %q has not the form GROUP/RESOURCE#SERVER;SERVER", override),
				"copy it from kube-apiserver's command line, in quotes")
		}
		endpoints := strings.Split(servers, ";")
		at := slices.IndexFunc(clusters, func(known []string) bool {
			return slices.ContainsFunc(known, func(e string) bool { return hasEndpoint(endpoints, e) })
		})
		if at < 0 {
			clusters = append(clusters, endpoints)
			continue
		}
		for _, e := range endpoints {
			if !hasEndpoint(clusters[at], e) {
				clusters[at] = append(slices.Clone(clusters[at]), e)
			}
		}
	}
	return clusters, nil
}

// hasEndpoint reports whether an address is among others; etcd's client takes it with its scheme and without.
func hasEndpoint(endpoints []string, address string) bool {
	bare := func(e string) string {
		if _, after, found := strings.Cut(e, "://"); found {
			e = after
		}
		return strings.ToLower(strings.TrimSuffix(e, "/"))
	}
	return slices.ContainsFunc(endpoints, func(e string) bool { return bare(e) == bare(address) })
}

// Report reads what etcd or the snapshots hold; progress may be nil.
func (o *Options) Report(ctx context.Context, opts evidence.ReportOptions, progress evidence.Progress) (report *evidence.Report, err error) {
	if _, opts.Known, err = o.Read(); err != nil {
		return nil, err
	}
	sources, closeAll, err := o.Open(ctx, progress)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	return evidence.Build(ctx, sources, opts)
}

// ClusterUIDs are the UIDs of the namespaces kube-system below the prefixes.
func (o *Options) ClusterUIDs(ctx context.Context) (uids []string, err error) {
	sources, closeAll, err := o.Open(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	for _, source := range sources {
		for _, prefix := range o.Prefixes {
			object, err := source.Find(ctx, evidence.CleanPrefix(prefix)+"/"+evidence.SystemNamespace)
			if errors.Is(err, evidence.ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, err
			}
			uids = append(uids, evidence.ClusterUID(object.Value))
		}
	}
	return uids, nil
}
