package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator/state"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/migrate"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin"
)

// requestLimit bounds one request about a Lease, and what people see.
const requestLimit = 10 * time.Second

const leaderLease = "hsm-kms-operate"

// leadership is what this instance knows of it.
type leadership struct {
	lease   *coordinationv1.Lease // held, as it was renewed last; nil: another one leads
	renewed time.Time
	ctx     context.Context //nolint:containedctx // ends when this one leads no more
	end     context.CancelFunc
}

// keepLeases publishes what the plugin says, on change and at each interval, and keeps the leadership or tries to get it. While that
// fails it is tried ever more rarely: see pause.
func (o *Operator) keepLeases(ctx context.Context) {
	look := o.cfg.Interval / 3
	tick := time.NewTicker(look)
	defer tick.Stop()
	defer o.stepDown(ctx)
	var due time.Time
	failures, failed := 0, false // in a row, and whether the last attempt failed
	for {
		changed, now := o.look(ctx), time.Now()
		switch {
		case !now.Add(look / 2).Before(due): // half a tick early rather than a whole one late
			err := o.publish(ctx)
			_, leadErr := o.campaign(ctx, now)
			err = errors.Join(err, leadErr)
			if failures++; err == nil || o.leading() != nil { // a leader tries until it has to step down
				failures = 0
			}
			due = now.Add(pause(o.cfg.Interval, failures))
			failed = o.logChange(ctx, failed, err)
		case changed && failures == 0:
			failed = o.logChange(ctx, failed, o.publish(ctx))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// pause is how long to wait for the next attempt after so many failures in a row: an interval, doubled each time, up to ten
// (5 minutes by default). A cluster whose API servers are away is not asked all the time by all of its nodes.
func pause(interval time.Duration, failures int) time.Duration {
	return min(max(state.RetryMost, interval), 10*interval, interval<<min(max(failures-1, 0), 10))
}

// APIHint is for an API server that does not do what is asked of it.
const APIHint = "check that the API server answers, and that the kubeconfig's identity has the roles that hsm-kms manifests operator prints"

// logChange logs when writing begins to fail, and when it works again. It returns whether it fails.
func (o *Operator) logChange(ctx context.Context, failed bool, err error) bool {
	if (err != nil) == failed || ctx.Err() != nil {
		return failed
	}
	if err != nil {
		o.cfg.Log.Warn("the Leases of this node cannot be written; it is tried again", "error", err, "hint", cmp.Or(hint.Of(err), APIHint))
		return true
	}
	o.cfg.Log.Info("the Leases of this node are written again")
	return false
}

// look asks the plugin, and reports whether it says something else than before.
func (o *Operator) look(ctx context.Context) (changed bool) {
	ctx, cancel := context.WithTimeout(ctx, kmsplugin.StatusTimeout)
	defer cancel()
	answer, err := o.ask(ctx)
	self := nodeOf(&o.cfg, answer, err)
	self.CertificateEnds, _ = o.kube.Expires() // what is wrong with the certificate is told by each request
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil && o.self.Hold != nil { // a plugin that says nothing may have written in a hold a moment ago
		self.Hold = &evidence.NodeHold{Limit: o.self.Hold.Limit}
	}
	changed = !self.equal(o.self)
	o.self = self
	return changed
}

// publish writes what the plugin says into the Lease of this node.
func (o *Operator) publish(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	o.mu.Lock()
	own := o.own
	text, err := o.self.text()
	o.own = nil // until it is written
	o.mu.Unlock()
	if err != nil {
		return err
	}
	own, err = o.renew(ctx, nodeLease(o.cfg.Node), own, func(lease *coordinationv1.Lease) {
		lease.Labels = map[string]string{nodeLabel: "true"}
		lease.Annotations = map[string]string{nodeAnnotation: text}
	})
	if err != nil {
		return fmt.Errorf("publishing what the plugin says: %w", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.own, o.figures.published = own, time.Now()
	return nil
}

// leases is the path of operate's own: one of each node, and the leader's.
func (o *Operator) leases() string {
	return "/apis/coordination.k8s.io/v1/namespaces/" + o.cfg.Migrate.Namespace + "/leases"
}

// renew makes a Lease this node's, if it is still as it was seen; seen nil: whatever it is.
func (o *Operator) renew(ctx context.Context, name string, seen *coordinationv1.Lease, fill func(*coordinationv1.Lease)) (*coordinationv1.Lease, error) {
	folder := o.leases()
	lease := &coordinationv1.Lease{}
	if seen != nil {
		seen.DeepCopyInto(lease)
	} else if err := o.kube.Get(ctx, folder+"/"+name, lease); err != nil && !errors.Is(err, migrate.ErrGone) {
		return nil, err
	}
	seconds := int32(o.cfg.validity() / time.Second)
	now := metav1.NowMicro()
	lease.TypeMeta = metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"}
	lease.Name, lease.Namespace = name, o.cfg.Migrate.Namespace
	lease.Spec.HolderIdentity, lease.Spec.LeaseDurationSeconds, lease.Spec.RenewTime = &o.cfg.Node, &seconds, &now
	fill(lease)
	written := &coordinationv1.Lease{}
	if lease.ResourceVersion == "" {
		return written, o.kube.Create(ctx, folder, lease, written)
	}
	return written, o.kube.Update(ctx, folder+"/"+name, lease, written)
}

// campaign keeps the leadership, or takes it when its holder shows no sign of life. leader is who leads then.
func (o *Operator) campaign(ctx context.Context, now time.Time) (leader string, err error) {
	limited, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	o.mu.Lock()
	held, renewed := o.lead.lease, o.lead.renewed
	o.mu.Unlock()
	if held != nil {
		lease, err := o.renew(limited, leaderLease, held, o.share)
		if err == nil {
			o.keepLead(ctx, lease, now)
			return o.cfg.Node, nil
		}
		if !apierrors.IsConflict(err) && !errors.Is(err, migrate.ErrGone) && now.Sub(renewed) < o.cfg.validity()*2/3 {
			return o.cfg.Node, fmt.Errorf("keeping the leadership: %w", err)
		}
		o.stepDown(ctx) // somebody else wrote it, or has a right to soon
	}
	lease := &coordinationv1.Lease{}
	err = o.kube.Get(limited, o.leases()+"/"+leaderLease, lease)
	if err != nil && !errors.Is(err, migrate.ErrGone) {
		return "", fmt.Errorf("asking who leads: %w", err)
	}
	holder := holderOf(lease)
	if err == nil && holder != o.cfg.Node && !o.expired(lease, now) {
		return holder, nil
	}
	if err != nil {
		lease = &coordinationv1.Lease{} // it is made, if nobody was quicker
	}
	lease, err = o.renew(limited, leaderLease, lease, o.share)
	switch {
	case apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err):
		return "", nil // another one was quicker
	case err != nil:
		return "", fmt.Errorf("taking the leadership: %w", err)
	}
	o.cfg.Log.Info("this node leads", "before", holder)
	o.keepLead(ctx, lease, now)
	return o.cfg.Node, nil
}

// expired reports whether the leader's Lease has not changed for as long as it counts, by this machine's own clock.
func (o *Operator) expired(lease *coordinationv1.Lease, now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return now.Sub(o.sights.see(leaderLease, lease, now).At) > validityOf(lease, o.cfg.validity())
}

// keepLead notes that the leadership was kept or taken.
func (o *Operator) keepLead(ctx context.Context, lease *coordinationv1.Lease, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lead.lease, o.lead.renewed = lease, now
	if o.lead.ctx == nil {
		o.lead.ctx, o.lead.end = context.WithCancel(ctx)
		select {
		case o.leads <- struct{}{}: // the first pass need not wait for its time
		default:
		}
	}
}

// stepDown gives the leadership up, here alone: its Lease runs out.
func (o *Operator) stepDown(ctx context.Context) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lead.ctx == nil {
		return
	}
	if ctx.Err() == nil {
		o.cfg.Log.Warn("this node leads no more")
	}
	o.lead.end()
	o.lead = leadership{}
}

// leading is a context for the leader's work, which ends with the leadership; nil: another one leads.
func (o *Operator) leading() context.Context {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lead.ctx
}

func holderOf(lease *coordinationv1.Lease) string {
	if lease.Spec.HolderIdentity == nil {
		return ""
	}
	return *lease.Spec.HolderIdentity
}
