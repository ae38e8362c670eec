package migrate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hsm-kms/hsm-kms/evidence"
)

// Between two looks at servers that do not write under the key yet.
const (
	lookFirst = time.Second
	lookMost  = 5 * time.Second
)

// prover finds out what each API server writes. A file in place is not a file that was read, and each `resources` entry
// of an EncryptionConfiguration has a KMS state of its own: so each server writes an object of each resource, and what
// etcd then holds is looked at.
type prover struct {
	opts *Options

	mu    sync.Mutex      // guards the fields below
	moved map[string]bool // keys of etcd that were not under the key and that the proof brought there
}

// subject is one server and one resource.
type subject struct {
	server   Server
	resource *surveyed
	proof    Proof
	final    bool // asking again gives the same answer
}

func (s *subject) settled() bool { return s.proof.OK || s.proof.Skipped || s.final }

// prove asks until every server writes every resource under the key, or time is up, or an answer is final. It sets
// out.Servers. The error is the context's, or the source's; that a server does not is no error.
func (p *prover) prove(ctx context.Context, resources []*surveyed, out *Outcome) error {
	subjects := p.subjects(resources)
	defer func() {
		for _, s := range subjects {
			out.Servers = append(out.Servers, s.proof)
		}
	}()
	if err := p.sweep(ctx, resources); err != nil {
		return err
	}
	deadline := time.Now().Add(p.opts.Wait)
	reported := ""
	for look := lookFirst; ; look = min(lookMost, 2*look) {
		if err := p.look(ctx, subjects); err != nil {
			return err
		}
		var open []*subject
		for _, s := range subjects {
			if s.final {
				return nil
			}
			if !s.settled() {
				open = append(open, s)
			}
		}
		left := time.Until(deadline)
		if len(open) == 0 || left <= 0 {
			return nil
		}
		if text := waiting(open); text != reported {
			reported = text
			p.opts.Say(fmt.Sprintf("waiting up to %s: %s", left.Round(time.Second), text))
		}
		if err := pause(ctx, min(look, left)); err != nil {
			return err
		}
	}
}

// waiting is what is waited for, in words.
func waiting(open []*subject) string {
	text := Describe(open[0].proof)
	if more := len(open) - 1; more > 0 {
		text += fmt.Sprintf(", and %d more", more)
	}
	return text
}

func (p *prover) subjects(resources []*surveyed) []*subject {
	var subjects []*subject
	for _, r := range resources {
		if r.behind != "" && len(p.opts.Groups[r.group()]) == 0 {
			subjects = append(subjects, &subject{resource: r, final: true, proof: Proof{Server: "the Service " + r.behind, Resource: r.Resource.Resource, Behind: r.behind, Error: unnamed(r)}})
			continue
		}
		for _, server := range p.opts.serversOf(r.Resource.Resource) {
			s := &subject{server: server, resource: r, proof: Proof{Server: server.Name(), Resource: r.Resource.Resource, Expected: p.opts.expected(r.Resource.Resource)}}
			s.proof.Skipped = !plantable(r) && len(r.samples) == 0
			subjects = append(subjects, s)
		}
	}
	slices.SortStableFunc(subjects, func(a, b *subject) int { return cmp.Compare(p.order(a.server), p.order(b.server)) })
	return subjects
}

// order is the place of a server in the options.
func (p *prover) order(server Server) int { return slices.Index(p.servers(), server) }

// servers are all servers, each once.
func (p *prover) servers() []Server {
	all := slices.Clone(p.opts.Servers)
	for _, group := range slices.Sorted(maps.Keys(p.opts.Groups)) {
		all = append(all, p.opts.Groups[group]...)
	}
	return all
}

func unnamed(r *surveyed) string {
	return "the API servers of " + r.group() + " are behind it, and each of them writes as its own configuration says: name each with --group-server " + r.group() + "=URL"
}

func plantable(r *surveyed) bool { return slices.Contains(Plantable(), r.Resource.Resource) }

// look asks about all that is open: the servers at the same time, the resources of each one after the other. It ends with
// the context's error, or that of an etcd that cannot be read.
func (p *prover) look(ctx context.Context, subjects []*subject) error {
	var wg sync.WaitGroup
	servers := p.servers()
	errs := make([]error, len(servers))
	for i, server := range servers {
		wg.Go(func() {
			for _, s := range subjects {
				if s.server == server && !s.settled() && errs[i] == nil {
					errs[i] = p.ask(ctx, s)
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// ask has one server write one resource.
func (p *prover) ask(ctx context.Context, s *subject) error {
	var seen under
	var err error
	if plantable(s.resource) {
		seen, err = p.canary(ctx, s)
	} else {
		seen, err = p.existing(ctx, s)
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil && (!isAnswer(err) || errors.Is(err, ErrBadAnswer)):
		return err
	case errors.Is(err, errNotServed):
		s.proof.Error, s.proof.Skipped = brief(err), true
		return nil
	case err != nil:
		s.proof.Error, s.final = brief(err), !isPassing(err)
		return nil
	}
	s.proof.Error, s.proof.Writes, s.proof.KeyID = "", seen.text(), seen.keyID
	s.proof.OK = p.opts.meets(s.proof.Resource, seen)
	return nil
}

// answer marks errors that are about one server or object. Others, of etcd, end the work.
type answer struct{ error }

func (a *answer) Unwrap() error { return a.error }

func answered(err error) error {
	if err == nil {
		return nil
	}
	return &answer{err}
}

func isAnswer(err error) bool {
	_, ok := errors.AsType[*answer](err)
	return ok
}

// errMoved: the object is not as that server left it: somebody else was quicker, or it left another cluster's.
var errMoved = errors.New("somebody else changed the object at the same moment, or this is not its etcd")

func isPassing(err error) bool {
	for _, passing := range []error{ErrPassing, ErrUnreachable, ErrGone, errMoved} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return false
}

// canary plants an object, looks at it, has it rewritten once, which needs the same permission as everything later, and
// removes it.
func (p *prover) canary(ctx context.Context, s *subject) (seen under, err error) {
	planted, revision, err := s.server.Plant(ctx, s.resource.Resource.Resource, p.opts.Namespace)
	if errors.Is(err, ErrGone) {
		return under{}, answered(fmt.Errorf("there is no namespace %s to make a canary in", p.opts.Namespace))
	}
	if err != nil {
		return under{}, answered(err)
	}
	defer func() {
		// Also when the work was interrupted. What stays all the same is found by its label the next time.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTime)
		defer cancel()
		if removeErr := s.server.Remove(ctx, planted); removeErr != nil && err == nil {
			err = answered(fmt.Errorf("removing the canary %s of %s: %w", planted.Name, planted.Namespace, removeErr))
		}
	}()
	seen, err = p.stored(ctx, planted, revision)
	if errors.Is(err, ErrElsewhere) {
		if _, gone := s.server.Rewrite(ctx, planted); errors.Is(gone, ErrGone) {
			err = answered(fmt.Errorf("somebody else removed the canary, another run perhaps: %w", ErrGone)) // try again
		}
	}
	if err == nil && p.opts.meets(s.resource.Resource.Resource, seen) {
		_, err = s.server.Rewrite(ctx, planted)
		err = answered(err)
	}
	return seen, err
}

// removeTime is how long the removal of a canary may take.
const removeTime = 10 * time.Second

// stored finds a canary in etcd.
func (p *prover) stored(ctx context.Context, planted Object, revision int64) (under, error) {
	for _, source := range p.opts.Sources {
		for _, prefix := range p.opts.Prefixes {
			object, err := source.Find(ctx, prefix+"/"+planted.Resource+"/"+planted.Namespace+"/"+planted.Name)
			if errors.Is(err, evidence.ErrNotFound) {
				continue
			}
			if err != nil {
				return under{}, err
			}
			return seenIn(object, revision)
		}
	}
	return under{}, answered(ErrElsewhere)
}

// ErrElsewhere: what an API server wrote is not in the etcd that is read.
var ErrElsewhere = errors.New("what it writes is not in this etcd")

// seenIn returns what the object is under, if it is still as the server left it.
func seenIn(object evidence.Object, revision int64) (under, error) {
	if object.Revision != revision {
		return under{}, answered(errMoved)
	}
	seen, err := underOf(object.Value)
	return seen, answered(err)
}

// errNotServed: the resource stands in etcd, and no API leads to it. Some an API server keeps for itself (masterleases,
// ranges); others are what a CRD left that was deleted. What is not under the key of them is
// named as a failure later.
var errNotServed = errors.New("not served by the API")

// existing has the server rewrite an object that there is. That it leaves one as it is which etcd has under the key is
// proof as well: an API server rewrites what its own key and provider would not give.
func (p *prover) existing(ctx context.Context, s *subject) (under, error) {
	var errs []error
	for _, sample := range s.resource.samples {
		revision, err := s.server.Rewrite(ctx, sample.Object)
		if err != nil {
			errs = append(errs, answered(fmt.Errorf("%s: %w", evidence.Printable(sample.Key), err)))
			if errors.Is(err, ErrUnreachable) || ctx.Err() != nil {
				break
			}
			continue
		}
		object, err := sample.source.Find(ctx, sample.Key)
		if errors.Is(err, evidence.ErrNotFound) {
			errs = append(errs, answered(ErrGone))
			continue
		}
		if err != nil {
			return under{}, err
		}
		seen, err := seenIn(object, revision)
		if err == nil && sample.found && p.opts.meets(s.resource.Resource.Resource, seen) {
			p.mu.Lock()
			p.moved[sample.Key] = true
			p.mu.Unlock()
		}
		if err == nil {
			return seen, nil
		}
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	if !slices.ContainsFunc(errs, func(err error) bool { return !errors.Is(err, ErrUnknown) }) {
		err = fmt.Errorf("%w: %w", errNotServed, err)
	}
	return under{}, answered(err)
}
