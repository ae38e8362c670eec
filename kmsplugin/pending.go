package kmsplugin

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
)

// pendingTrailer is the gRPC trailer of Status in which keys to come are told, one value each: key_id, activation
// (RFC 3339) and "ready", "unready" or "deferred", separated by blanks. The KMS v2 answer has no field for it, and
// kube-apiserver does not look at trailers.
const pendingTrailer = "hsm-kms-pending"

// deferredTrailer tells why a key is held back: key_id, the time at which it becomes current at the latest ("-": there is
// none), and the reason in words. It is a trailer of its own because clients of before take pendingTrailer with exactly
// three fields.
const deferredTrailer = "hsm-kms-deferred"

// retainedTrailer names the keys that were current and are still served, one key_id each, the oldest first.
const retainedTrailer = "hsm-kms-retained"

// maxPendingTold and maxRetainedTold bound the trailer; a ring has one pending key, or two. The oldest retained keys are the
// next to be retired: those that are left out come up when these are gone.
const (
	maxPendingTold  = 8
	maxRetainedTold = 16
)

// tellOthers says which keys of the ring are not current. kube-apiserver does not look at trailers.
func tellOthers(ctx context.Context, pending []health.Pending, retained []envelope.KeyID) {
	if len(pending)+len(retained) > 0 {
		_ = grpc.SetTrailer(ctx, trailerOf(pending, retained)) // fails only outside a gRPC call
	}
}

func trailerOf(pending []health.Pending, retained []envelope.KeyID) metadata.MD {
	trailer := metadata.MD{}
	for _, id := range retained[:min(len(retained), maxRetainedTold)] {
		trailer.Append(retainedTrailer, id.String())
	}
	for _, p := range pending[:min(len(pending), maxPendingTold)] {
		trailer.Append(pendingTrailer, p.Key.String()+" "+p.Activates.UTC().Format(time.RFC3339Nano)+" "+readiness(p))
		if p.Deferred {
			until := "-"
			if !p.Until.IsZero() {
				until = p.Until.UTC().Format(time.RFC3339Nano)
			}
			trailer.Append(deferredTrailer, p.Key.String()+" "+until+" "+p.Why)
		}
	}
	return trailer
}

func readiness(p health.Pending) string {
	switch {
	case p.Deferred:
		return "deferred"
	case p.Ready:
		return "ready"
	}
	return "unready"
}

// pendingIn reads the trailer. What it does not understand, of a newer plugin perhaps, it leaves out.
func pendingIn(trailer metadata.MD) []health.Pending {
	var pending []health.Pending
	for _, value := range trailer.Get(pendingTrailer) {
		if p, err := parsePending(value); err == nil {
			pending = append(pending, p)
		}
	}
	for _, value := range trailer.Get(deferredTrailer) {
		for i := range pending {
			addReason(&pending[i], value)
		}
	}
	return pending
}

// retainedIn reads the trailer, and leaves out what is no key_id.
func retainedIn(trailer metadata.MD) []envelope.KeyID {
	var retained []envelope.KeyID
	for _, value := range trailer.Get(retainedTrailer) {
		if id, err := envelope.ParseKeyID(value); err == nil {
			retained = append(retained, id)
		}
	}
	return retained
}

// addReason takes what the trailer says when it is about this key.
func addReason(p *health.Pending, value string) {
	rest, about := strings.CutPrefix(value, p.Key.String()+" ")
	until, why, ok := strings.Cut(rest, " ")
	if !about || !ok {
		return
	}
	if at, err := time.Parse(time.RFC3339Nano, until); err == nil {
		p.Until = at
	}
	p.Why = why
}

func parsePending(value string) (health.Pending, error) {
	fields := strings.Fields(value)
	if len(fields) != 3 {
		return health.Pending{}, fmt.Errorf("a pending key has 3 fields, not %d", len(fields))
	}
	id, err := envelope.ParseKeyID(fields[0])
	if err != nil {
		return health.Pending{}, err
	}
	at, err := time.Parse(time.RFC3339Nano, fields[1])
	if err != nil {
		return health.Pending{}, fmt.Errorf("reading an activation: %w", err)
	}
	return health.Pending{Key: id, Activates: at, Ready: fields[2] == "ready", Deferred: fields[2] == "deferred"}, nil
}
