package migrate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/encconfig"
)

// Stage is what Options.Progress is told while objects are rewritten.
const Stage = "rewriting"

// Options say what to do. All but Progress and Say are required; Defaults gives those that few will change.
type Options struct {
	Sources  []evidence.Source // what is live; a snapshot cannot be rewritten
	Prefixes []string          // of the API server, as evidence.CleanPrefix gives them
	Servers  []Server          // every API server of the cluster
	// Groups are the API servers that answer for a group in kube-apiserver's place (an APIService with spec.service), by group.
	Groups map[string][]Server
	// Expected is the EncryptionConfiguration of the API servers: what is under another provider than it has is rewritten too.
	// nil: any provider will do.
	Expected    *encconfig.Config
	Known       *stored.Resources // where each resource is in etcd
	RequiredKey string            // key_id
	Resources   []string          // as an EncryptionConfiguration names them, wildcards included
	Current     bool              // RequiredKey was asked of the ring
	Newer       []evidence.NewerKey
	Cluster     string        // UID of the cluster that the ring is bound to; empty: none, or it was not asked
	Accepted    []string      // ranges of etcd that need not be read, as evidence.RangeText has them
	AllowEmpty  bool          // that there is no object of a resource in Resources is no finding
	Namespace   string        // where canaries are planted
	Rate        float64       // objects per second, over all servers
	Parallel    int           // requests at a time
	Wait        time.Duration // how long to wait for every server to write under the key
	Patience    time.Duration // how long no server may answer
	// Retry is the pause before what failed in passing is tried again; it is doubled three times.
	Retry  time.Duration
	DryRun bool
	// ProofOnly ends the run when it is seen what every server writes: nothing else is rewritten, and there is no report.
	ProofOnly bool
	Progress  evidence.Progress // nil: nobody watches
	Say       func(text string) // a line for people, while it runs; called by one goroutine at a time
}

// Defaults are those of the command.
func Defaults() Options {
	return Options{
		Known: stored.Kubernetes(), Resources: []string{"secrets"}, Namespace: "default", Rate: 50, Parallel: 4,
		Wait: 5 * time.Minute, Patience: time.Minute, Retry: time.Second, Say: func(string) {},
	}
}

// retries are the pauses before each further attempt at what failed in passing.
func (o *Options) retries() iter.Seq[time.Duration] {
	return func(yield func(time.Duration) bool) {
		for i := range 4 {
			if !yield(o.Retry << i) {
				return
			}
		}
	}
}

// ErrUnproven: an API server does not write under the key that is required, or nobody could see that it does.
var ErrUnproven = errors.New("not every API server writes under the required key")

// Run proves, rewrites and reports. An error is the context's, a source's, ErrUnproven or ErrLost. The outcome is there
// beside it, as far as it came; nil when not even the first reading did. That something is left when it is through is no
// error: see Outcome.Clean and Outcome.Failed.
func Run(ctx context.Context, opts Options) (*Outcome, error) {
	began := time.Now()
	out := &Outcome{RequiredKey: opts.RequiredKey, Newer: append([]evidence.NewerKey{}, opts.Newer...), DryRun: opts.DryRun, Servers: []Proof{}, Resources: []Resource{}, Failures: []Failure{}}
	resources, err := survey(ctx, &opts)
	if err != nil {
		return nil, err
	}
	if err := opts.checkNames(ctx); err != nil {
		return nil, err
	}
	if err := opts.attribute(ctx, resources); err != nil {
		return nil, err
	}
	err = run(ctx, &opts, resources, out)
	if !opts.DryRun {
		out.Seconds = time.Since(began).Seconds()
	}
	out.Interrupted = err != nil && ctx.Err() != nil
	return out, err
}

func run(ctx context.Context, opts *Options, resources []*surveyed, out *Outcome) error {
	resources = opts.withPlanted(resources)
	var total int64
	for _, r := range resources {
		out.Resources = append(out.Resources, r.Resource)
		total += r.Found
	}
	p := &prover{opts: opts, moved: map[string]bool{}}
	if opts.DryRun {
		for _, s := range p.subjects(resources) {
			out.Servers = append(out.Servers, s.proof)
		}
		out.Found, out.Seconds = total, float64(total)/opts.Rate
		if slices.ContainsFunc(out.Servers, func(p Proof) bool { return p.Error != "" }) {
			return ErrUnproven
		}
		return nil
	}
	if err := p.prove(ctx, resources, out); err != nil {
		return fmt.Errorf("finding out what the API servers write: %w", err)
	}
	if out.unproven() {
		return ErrUnproven
	}
	if opts.ProofOnly {
		return nil
	}
	out.Found, out.Rewritten = int64(len(p.moved)), int64(len(p.moved))
	if err := newRewriter(opts, total, out).run(ctx); err != nil {
		return fmt.Errorf("rewriting: %w", err)
	}
	report, err := evidence.Build(ctx, opts.Sources, evidence.ReportOptions{Known: opts.Known, AllowEmpty: opts.AllowEmpty})
	if err != nil {
		return fmt.Errorf("checking at the end: %w", err)
	}
	required := evidence.Required{KeyID: opts.RequiredKey, Resources: opts.Resources, Current: opts.Current, Newer: opts.Newer, Cluster: opts.Cluster}
	report.RequireKey(required, opts.AllowEmpty)
	report.RequireRead(opts.Accepted)
	if opts.Expected != nil {
		s := newSelector(opts)
		opts.Expected.Compare(report, s.wants)
	}
	out.Report = report
	return nil
}

// withPlanted adds the resources that can be proven without an object of somebody else's, if they were asked for.
func (o *Options) withPlanted(resources []*surveyed) []*surveyed {
	s := newSelector(o)
	for _, name := range Plantable() {
		known := false
		for _, r := range resources {
			known = known || r.Resource.Resource == name
		}
		if s.wants(name) && !known {
			resources = append(resources, &surveyed{Resource: Resource{Resource: name}})
		}
	}
	slices.SortFunc(resources, func(a, b *surveyed) int { return cmp.Compare(a.Resource.Resource, b.Resource.Resource) })
	return resources
}
