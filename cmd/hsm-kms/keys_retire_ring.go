package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
	"github.com/hsm-kms/hsm-kms/kmsplugin/socket"
)

// withdrawMargin is the least time before its activation at which a pending key may still be withdrawn: later,
// a node whose clock is ahead may have sealed under it.
const withdrawMargin = 5 * time.Minute

// judgeRing finds the version and notes what the tokens, this machine's plugin and its clock say against destroying it.
func (r *retirement) judgeRing(ctx context.Context) error {
	r.version, r.successor, r.others = envelope.Version{}, time.Time{}, nil
	if err := errors.Join(r.in.problems...); err != nil {
		r.refuse(hint.Wrap(fmt.Errorf("a key is destroyed only when every configured token can be reached: %w", err),
			"make every token reachable, or take one that is gone for good out of the configuration"))
		return nil // nothing that the ring says now can be relied on
	}
	if err := r.in.ring.Exercise(ctx); err != nil && !errors.Is(err, envelope.ErrAmbiguous) {
		return fmt.Errorf("finding out which key is current: %w", err)
	}
	now, view := time.Now(), r.in.ring.View()
	if err := clockIsPlausible(view.Versions, r.in.proven, now); err != nil {
		r.refuse(err)
	}
	i := slices.IndexFunc(view.Versions, func(v envelope.Version) bool { return v.ID == r.id && v.State != envelope.Refused })
	if i < 0 {
		r.judgeUnserved(view.Versions)
		return nil
	}
	r.version = view.Versions[i]
	for _, v := range view.Versions {
		if v.State == envelope.Refused && v.ID.Version == r.id.Version && v.ID != r.id {
			r.warn("an object with the CKA_ID of this key on %s is not served (%s), and stays", strings.Join(v.Tokens, ","), v.Refused)
		}
	}
	if r.version.State == envelope.Retained {
		r.judgeRetained(view)
	} else if err := mayWithdraw(r.version, r.cfg.RefreshInterval.Std(), now); err != nil {
		r.refuse(err)
	}
	return r.judgeNode(ctx)
}

// judgeUnserved: a key that is not served has no fingerprint, so nobody knows whether it is this one. It must not pass for
// destroyed.
func (r *retirement) judgeUnserved(versions []envelope.Version) {
	for _, v := range versions {
		if v.State == envelope.Refused && v.ID.Version == r.id.Version && v.ID.Fingerprint == [len(v.ID.Fingerprint)]byte{} {
			r.refuse(hint.Wrap(fmt.Errorf("whether %s is still there is not clear: an object with its CKA_ID on %s is not served: %s", r.id, strings.Join(v.Tokens, ","), v.Refused),
				"see why with: hsm-kms keys list; mend that, or delete the object with the vendor's tool when you know that it is not needed"))
		}
	}
}

// judgeRetained: which key is current must be clear, here and on every node whose token this machine knows.
func (r *retirement) judgeRetained(view envelope.View) {
	r.successor = successor(view.Versions, r.id)
	for _, v := range view.Versions {
		if v.State != envelope.Refused && v.ID != r.id {
			r.others = append(r.others, v.ID.String())
		}
	}
	switch {
	case view.Problem != nil || view.Current == nil:
		r.refuse(fmt.Errorf("which key is current is not clear: %w", cmp.Or(view.Problem, envelope.ErrNotProven)))
		return
	case view.Deferred != nil:
		r.refuse(hint.Wrap(fmt.Errorf("which key is current is not clear: %s is due and does not work on every token", view.Deferred.ID),
			"see why with: hsm-kms status and hsm-kms doctor; mend the token, or copy the key to it"))
	}
	for _, token := range r.in.set.Members() {
		if !slices.Contains(view.Current.Tokens, token.Name()) {
			r.refuse(hint.Wrap(fmt.Errorf("the current key %s is not on the token %s: a node that has only that one goes on writing under an older key", view.Current.ID, token.Name()),
				"copy the key to it with the vendor's tool, wait until every node names it, then make another report"))
		}
	}
}

// successor is when the key that came after id became current; zero: unknown. A twin of id came with it, not after it.
func successor(versions []envelope.Version, id envelope.KeyID) time.Time {
	own, _ := envelope.ActivationOf([]byte(id.Version))
	for _, v := range versions { // in order
		inUse := v.State == envelope.Current || v.State == envelope.Retained
		if inUse && v.Activation.After(own) && !v.Activation.IsZero() {
			return v.Activation
		}
	}
	return time.Time{}
}

// judgeNode: the plugin of this machine must not be about to seal under the key, whatever the ring says.
func (r *retirement) judgeNode(ctx context.Context) error {
	if r.in.proven.Key == r.id {
		r.refuse(hint.Wrap(fmt.Errorf("the plugin of this machine proved %s last (%s in stateDir): after a restart without its HSM it would name it again", r.id, health.ProvenFile),
			"start hsm-kms serve here until hsm-kms status names the current key; where no plugin belongs, give this machine a stateDir of its own"))
	}
	if nobodyListens(ctx, r.cfg.Socket.Path) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	answer, err := kmsplugin.StatusOf(ctx, r.cfg.Socket.Path)
	switch {
	case err != nil && r.version.State == envelope.Retained:
		r.refuse(fmt.Errorf("under which key the plugin of this machine writes is not clear: %w", err))
	case err == nil && answer.KeyID == r.id.String():
		r.refuse(hint.Wrap(fmt.Errorf("the plugin of this machine names %s as the key to write under", r.id), "see why with: hsm-kms status; its log says what keeps it from the current key"))
	}
	return nil
}

// nobodyListens: there is no socket, or one that was left behind. Any other answer is somebody's.
func nobodyListens(ctx context.Context, path string) bool {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return socket.NobodyListens(err)
	}
	_ = conn.Close()
	return false
}

// clockIsPlausible refuses to judge what is pending by a clock that is behind: a key in use would look pending.
func clockIsPlausible(versions []envelope.Version, proven health.Proven, now time.Time) error {
	advice := "set this machine's clock right, then try again"
	if proven.At.After(now) {
		return finding(hint.Wrap(fmt.Errorf("this machine's clock is behind: it says %s, and the plugin here proved a key at %s", now.UTC().Format(time.RFC3339), proven.At.UTC().Format(time.RFC3339)), advice))
	}
	for _, v := range versions {
		if v.State != envelope.Refused && !v.Activation.After(now) {
			return nil
		}
	}
	if len(versions) == 0 {
		return nil // there is nothing to judge, and the key is not there
	}
	return finding(hint.Wrap(fmt.Errorf("by this machine's clock (%s) no key of the ring is in use yet", now.UTC().Format(time.RFC3339)), advice))
}

// mayWithdraw says what speaks against destroying a key that is not retained.
func mayWithdraw(v envelope.Version, refresh time.Duration, now time.Time) error {
	if v.State == envelope.Current {
		return finding(hint.Wrap(fmt.Errorf("%s is current and is never destroyed", v.ID), "rotate first: hsm-kms keys rotate"))
	}
	margin := max(withdrawMargin, 2*refresh)
	switch left := v.Activation.Sub(now); {
	case left < 0:
		return finding(hint.Wrap(fmt.Errorf("%s was to become current %s ago: a node may have sealed under it", v.ID, -left.Round(time.Second)),
			"rotate again: hsm-kms keys rotate"))
	case left < margin:
		return finding(hint.Wrap(fmt.Errorf("%s becomes current in %s: within %s of it a node may have sealed under it", v.ID, left.Round(time.Second), margin),
			"let it become current and rotate again"))
	}
	return nil
}
