package keyops

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// coming are the versions that are still to become current: pending ones, one that is held back, and those that are not
// served here and may be elsewhere.
func coming(view envelope.View, now time.Time) []envelope.Version {
	var versions []envelope.Version
	for _, v := range view.Versions {
		held := view.Deferred != nil && v.State != envelope.Refused && v.ID == view.Deferred.ID
		if held || v.State == envelope.Pending || v.State == envelope.Refused && v.Activation.After(now) {
			versions = append(versions, v)
		}
	}
	return versions
}

// notDue is why no key is made of a rotation that is Timed; nil: one is, unless mayRotate refuses.
func notDue(view envelope.View, olderThan time.Duration, now time.Time) (*NotDue, error) {
	not := &NotDue{}
	if view.Current != nil {
		not.Current = view.Current.ID.String()
	}
	for _, v := range coming(view, now) {
		if v.State == envelope.Refused {
			continue
		}
		not.Reason = cmp.Or(not.Reason, standingOf(view, v))
		not.Pending = append(not.Pending, v.ID.String())
	}
	switch {
	case not.Reason != "":
		return not, nil
	case view.Current == nil:
		return nil, app.Finding(fmt.Errorf("it is not clear whether a rotation is due: %w", cmp.Or(view.Problem, envelope.ErrNotProven)))
	case view.Current.Activation.IsZero():
		return nil, nil // made elsewhere: nobody knows its age
	}
	if age := now.Sub(view.Current.Activation); age < olderThan {
		not.Reason = fmt.Sprintf("the current key %s has been active for %s, less than %s", view.Current.ID, age.Round(time.Second), olderThan)
		return not, nil
	}
	return nil, nil
}

// standingOf says of a version that is still to come what it waits for.
func standingOf(view envelope.View, v envelope.Version) string {
	at := v.Activation.UTC().Format(time.RFC3339)
	switch {
	case v.State == envelope.Refused:
		return fmt.Sprintf("%s is not served here (%s), and becomes current at %s where it is", Name(v), v.Refused, at)
	case view.Deferred != nil && view.Deferred.ID == v.ID:
		return fmt.Sprintf("%s is due, and held back: %s", v.ID, v.WhyHeldBack())
	}
	return fmt.Sprintf("%s is pending: it becomes current at %s", v.ID, at)
}

// mayRotate refuses a rotation while another is under way, and one that would not come last: the order of the ring is that
// of activation, and a key that is older than another would never become current.
func mayRotate(ring string, view envelope.View, another bool, activation, now time.Time) error {
	served := slices.DeleteFunc(slices.Clone(view.Versions), func(v envelope.Version) bool { return v.State == envelope.Refused })
	if len(served) == 0 {
		return app.Finding(hint.Wrap(fmt.Errorf("the ring %s is empty: there is nothing to rotate", ring), "make the first key with: hsm-kms keys create"))
	}
	if under := coming(view, now); len(under) > 0 && !another {
		v := under[0]
		advice := "wait until it is current; see what it waits for with: hsm-kms keys list"
		if v.State == envelope.Pending && v.Activation.After(now) {
			advice = "wait until it is current, or withdraw it with: hsm-kms keys retire " + v.ID.String()
		}
		return app.Finding(hint.Wrap(errors.New(standingOf(view, v)), advice+"; to make one more all the same, add: --another"))
	}
	for _, v := range served {
		if !v.Activation.Before(activation) {
			return app.Finding(hint.Wrap(
				fmt.Errorf("%s becomes current at %s, not before the new key would (%s)", v.ID, v.Activation.UTC().Format(time.RFC3339), activation.UTC().Format(time.RFC3339)),
				"choose a longer --activate-in, or withdraw that key first: hsm-kms keys retire "+v.ID.String()))
		}
	}
	return nil
}
