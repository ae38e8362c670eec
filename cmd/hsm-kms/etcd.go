package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/live"
	"github.com/hsm-kms/hsm-kms/evidence/snapshot"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

func (c *command) etcd() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "etcd",
		Short: "What etcd or a snapshot holds under which key, and whether it can be opened",
		Long: `report lists what etcd or a snapshot file holds under which key and in plain text, and asks no HSM. verify opens
every DEK with the HSM and authenticates every object: the restore drill. get recovers one object without an API server.
migrate has the API servers rewrite what is not under the current key.`,
		Example: `  hsm-kms etcd report
  hsm-kms etcd report --snapshot backup.db --require-key current
  hsm-kms etcd verify --snapshot backup.db`,
	})
	cmd.AddCommand(c.etcdReport(), c.etcdVerify(), c.etcdGet(), c.etcdMigrate())
	return cmd
}

// The defaults of etcdctl and of kube-apiserver, and where kubeadm puts a control-plane node's files.
const (
	defaultEndpoint    = "127.0.0.1:2379"
	kubeadmEndpoint    = "https://127.0.0.1:2379"
	defaultEtcdPrefix  = "/registry"
	kubeadmCA          = "/etc/kubernetes/pki/etcd/ca.crt"
	kubeadmCertificate = "/etc/kubernetes/pki/apiserver-etcd-client.crt"
	kubeadmKey         = "/etc/kubernetes/pki/apiserver-etcd-client.key"
)

// etcdFlags say what to read.
type etcdFlags struct {
	endpoints         []string
	caFile, cert, key string
	overrides         []string
	prefixes          []string
	layouts           []string
	snapshots         []string
}

// add is for commands that read etcd or snapshots.
func (f *etcdFlags) add(cmd *cobra.Command) {
	f.addLive(cmd)
	cmd.Flags().StringArrayVar(&f.snapshots, "snapshot", nil, "read this `file` (of etcdctl or etcdutl, or member/snap/db) and no etcd; may be given again")
	cmd.MarkFlagsMutuallyExclusive("snapshot", "endpoints")
	cmd.MarkFlagsMutuallyExclusive("snapshot", "etcd-servers-overrides")
}

// addLive is for commands that need the etcd of a running cluster.
func (f *etcdFlags) addLive(cmd *cobra.Command) {
	f.addClient(cmd)
	flags := cmd.Flags()
	flags.StringSliceVar(&f.overrides, "etcd-servers-overrides", nil, "other etcds, as kube-apiserver takes them: GROUP/RESOURCE#SERVER;SERVER")
	flags.StringArrayVar(&f.layouts, "resource-path", nil, "`RESOURCE=PREFIX`: another API server keeps this resource below PREFIX in etcd; \"openshift\" names all of OpenShift's; may be given again")
}

// addClient is for commands that look into one etcd.
func (f *etcdFlags) addClient(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringSliceVar(&f.endpoints, "endpoints", []string{defaultEndpoint}, "etcd's addresses, as etcdctl takes them")
	flags.StringVar(&f.caFile, "cacert", "", "CA that signed etcd's certificate (default: kubeadm's, if it is there)")
	flags.StringVar(&f.cert, "cert", "", "client certificate (default: kubeadm's, if it is there)")
	flags.StringVar(&f.key, "key", "", "the client certificate's key (default: kubeadm's, if it is there)")
	flags.StringSliceVar(&f.prefixes, "prefix", []string{defaultEtcdPrefix}, "kube-apiserver's --etcd-prefix; more than one is fine")
	cmd.MarkFlagsRequiredTogether("cert", "key")
}

// openshift is what --resource-path takes for all resources of OpenShift's own API servers.
const openshift = "openshift"

// read returns the prefixes, and where each resource is below them.
func (f *etcdFlags) read() (prefixes []string, known *stored.Resources, err error) {
	for _, prefix := range f.prefixes {
		cleaned := evidence.CleanPrefix(prefix)
		if strings.TrimSpace(cleaned) != cleaned || cleaned == "/" {
			return nil, nil, hint.Wrap(fmt.Errorf("--prefix: %q is no prefix", prefix), "give kube-apiserver's --etcd-prefix, such as "+defaultEtcdPrefix)
		}
		prefixes = append(prefixes, cleaned)
	}
	var layouts []stored.Layout
	for _, text := range f.layouts {
		more, err := layoutOf(text)
		if err != nil {
			return nil, nil, err
		}
		layouts = append(layouts, more...)
	}
	if err := f.below(prefixes, layouts); err != nil {
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
func (f *etcdFlags) below(prefixes []string, layouts []stored.Layout) error {
	for _, l := range layouts {
		if _, below := evidence.PathOf(prefixes, []byte(l.Prefix)); !below {
			advice := "name the prefix too: --prefix " + strings.Join(f.prefixes, ",") + ",/OTHER"
			if slices.Contains(f.layouts, openshift) {
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
func (f *etcdFlags) withKubeadm() {
	if f.caFile != "" || f.cert != "" {
		return
	}
	plain := slices.ContainsFunc(f.endpoints, func(e string) bool { return strings.HasPrefix(e, "http://") || strings.HasPrefix(e, "unix:") })
	for _, file := range []string{kubeadmCA, kubeadmCertificate, kubeadmKey} {
		if _, err := os.Stat(file); err != nil || plain {
			return
		}
	}
	f.caFile, f.cert, f.key = kubeadmCA, kubeadmCertificate, kubeadmKey
	if slices.Equal(f.endpoints, []string{defaultEndpoint}) {
		f.endpoints = []string{kubeadmEndpoint}
	}
}

// open opens what the flags name. The caller closes.
func (f *etcdFlags) open(ctx context.Context, progress evidence.Progress) (sources []evidence.Source, closeAll func() error, err error) {
	var closers []func() error
	closeAll = func() error {
		var errs []error
		for _, end := range closers {
			errs = append(errs, end())
		}
		return errors.Join(errs...)
	}
	prefixes, _, err := f.read()
	if err != nil {
		return nil, nil, err
	}
	for _, path := range f.snapshots {
		file, err := snapshot.Open(ctx, path, snapshot.Options{Prefixes: prefixes, Progress: progress})
		if err != nil {
			return nil, nil, errors.Join(err, closeAll())
		}
		sources, closers = append(sources, file), append(closers, file.Close)
	}
	if len(f.snapshots) > 0 {
		return sources, closeAll, nil
	}
	f.withKubeadm()
	clusters, err := f.clusters()
	if err != nil {
		return nil, nil, err
	}
	var etcds []*live.Etcd
	for _, endpoints := range clusters {
		etcd, err := live.Open(live.Config{
			Endpoints: endpoints, CAFile: f.caFile, CertFile: f.cert, KeyFile: f.key, Prefixes: prefixes, Progress: progress,
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
func (f *etcdFlags) clusters() ([][]string, error) {
	clusters := [][]string{f.endpoints}
	for _, override := range f.overrides {
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

// report reads what etcd or the snapshots hold; progress may be nil.
func (f *etcdFlags) report(ctx context.Context, opts evidence.ReportOptions, progress evidence.Progress) (report *evidence.Report, err error) {
	if _, opts.Known, err = f.read(); err != nil {
		return nil, err
	}
	sources, closeAll, err := f.open(ctx, progress)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	return evidence.Build(ctx, sources, opts)
}

// clusterUIDs are the UIDs of the namespaces kube-system below the prefixes.
func (f *etcdFlags) clusterUIDs(ctx context.Context) (uids []string, err error) {
	sources, closeAll, err := f.open(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	for _, source := range sources {
		for _, prefix := range f.prefixes {
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
