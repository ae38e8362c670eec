package migrate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/time/rate"

	"github.com/hsm-kms/hsm-kms/evidence"
)

// rewriter has objects rewritten, several at a time, at a pace, by the servers in turn.
type rewriter struct {
	opts    *Options
	pools   map[string]*pool // by group; "": of all that have none of their own
	limiter *rate.Limiter
	total   int64 // expected

	mu    sync.Mutex // guards the fields below, and keeps progress to one goroutine at a time
	out   *Outcome
	named map[string]bool // keys that failed, of those that are named
	aside []selected      // to be tried again later
}

func newRewriter(opts *Options, total int64, out *Outcome) *rewriter {
	pools := map[string]*pool{"": newPool(opts.Servers, opts.Patience)}
	for group, servers := range opts.Groups {
		pools[group] = newPool(servers, opts.Patience)
	}
	return &rewriter{
		opts: opts, pools: pools, limiter: rate.NewLimiter(rate.Limit(opts.Rate), 1),
		total: total, out: out, named: map[string]bool{},
	}
}

// run reads all sources and rewrites what is not under the key, then tries again what failed in passing. The error is the
// context's, a source's, or wraps ErrLost; that objects failed is no error.
func (r *rewriter) run(ctx context.Context) error {
	s := newSelector(r.opts)
	err := r.feed(ctx, func(ctx context.Context, work chan<- selected) error {
		for _, source := range r.opts.Sources {
			_, err := source.Read(ctx, evidence.Loose, func(page []evidence.Object) error {
				for i := range page {
					object, ok := s.of(&page[i])
					if !ok || !object.found {
						continue
					}
					if err := send(ctx, work, object); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	for wait := range r.opts.retries() {
		if err != nil || len(r.aside) == 0 {
			break
		}
		again := r.aside
		r.aside = nil
		if err = pause(ctx, wait); err != nil {
			r.aside = again
			break
		}
		err = r.feed(ctx, func(ctx context.Context, work chan<- selected) error {
			for _, object := range again {
				if err := send(ctx, work, object); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for _, object := range r.aside { // the last word of each
		r.fail(object, object.last)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total = r.out.Found // that is all there was
	r.progress()
	return err
}

func send(ctx context.Context, work chan<- selected, object selected) error {
	select {
	case work <- object:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// feed runs the workers while produce hands out work.
func (r *rewriter) feed(ctx context.Context, produce func(ctx context.Context, work chan<- selected) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan selected)
	var wg sync.WaitGroup
	for range r.opts.Parallel {
		wg.Go(func() {
			for object := range work {
				if err := r.one(ctx, object); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	err := produce(ctx, work)
	close(work)
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// one rewrites one object, or sets it aside, or counts it as failed. An error ends the work.
func (r *rewriter) one(ctx context.Context, object selected) error {
	if r.isNamed(object.Key) {
		return nil // a source may give an object twice
	}
	switch {
	case object.broken != nil:
		r.fail(object, fmt.Errorf("no API server can read it: %w", object.broken))
		return nil
	case !object.known:
		r.fail(object, errors.New("it is of no known resource: --resource-path names it"))
		return nil
	case !object.addressable:
		r.fail(object, errors.New("it has not the form of an object of the API"))
		return nil
	}
	pool := cmp.Or(r.pools[groupOf(object.Resource)], r.pools[""])
	for range len(pool.members) + 1 {
		i, server, err := pool.take(ctx)
		if err != nil {
			return err
		}
		if err := r.limiter.Wait(ctx); err != nil {
			return fmt.Errorf("limiting the rate: %w", err)
		}
		revision, err := server.Rewrite(ctx, object.Object)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, ErrUnreachable) {
			pool.silent(i, err)
			object.last = err
			continue
		}
		if errors.Is(err, ErrBadAnswer) {
			return fmt.Errorf("%s: %s: %w", server.Name(), evidence.Printable(object.Key), err)
		}
		pool.answered(i)
		if err == nil && revision == object.Revision {
			err = fmt.Errorf("%w: %s left it unchanged, because it would itself write %s", ErrPassing, server.Name(), evidence.Printable(object.under.full()))
		}
		r.judge(object, err)
		return nil
	}
	r.setAside(object, object.last)
	return nil
}

// judge counts what came of an object.
func (r *rewriter) judge(object selected, err error) {
	switch {
	case err == nil:
		r.done(func(out *Outcome) { out.Rewritten++ })
	case errors.Is(err, ErrGone):
		r.done(func(out *Outcome) { out.Gone++ })
	case errors.Is(err, ErrPassing):
		r.setAside(object, err)
	default:
		r.fail(object, err)
	}
}

// done counts an object that is done. It calls count with mu held.
func (r *rewriter) done(count func(out *Outcome)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	count(r.out)
	r.out.Found++
	r.progress()
}

// setAside keeps an object for later, so that it does not hold up the others.
func (r *rewriter) setAside(object selected, err error) {
	r.mu.Lock()
	full := len(r.aside) >= evidence.MaxNamed
	if !full {
		object.last = err
		r.aside = append(r.aside, object)
	}
	r.mu.Unlock()
	if full {
		r.fail(object, err)
	}
}

func (r *rewriter) fail(object selected, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.named[object.Key] {
		return // given twice at the same moment
	}
	r.out.Failed++
	r.out.Found++
	if len(r.out.Failures) < evidence.MaxNamed {
		r.out.Failures = append(r.out.Failures, Failure{Key: object.Key, Reason: brief(err)})
		r.named[object.Key] = true
	}
	r.progress()
}

func (r *rewriter) isNamed(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.named[key]
}

// progress tells how far it is. mu is held.
func (r *rewriter) progress() {
	if r.opts.Progress != nil {
		r.opts.Progress(Stage, r.out.Found, max(r.out.Found, r.total))
	}
}
