package health

import (
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// Pending is a key that is to become current, as the last look at the ring showed it.
type Pending struct {
	Key       envelope.KeyID
	Activates time.Time
	Ready     bool      // sealed and opened with on every configured token
	Deferred  bool      // due already, and held back
	Why       string    // Deferred: why, for people
	Until     time.Time // Deferred: when it becomes current at the latest; zero: there is no such time
}

// Pending lists the keys that are to become current, the next one first. It asks nobody and does not wait.
func (h *Health) Pending() []Pending {
	if list := h.pending.Load(); list != nil {
		return *list
	}
	return nil
}

// Retained lists the keys that were current and are served for Decrypt, the oldest first, as the last look at the ring showed
// them. It asks nobody and does not wait.
func (h *Health) Retained() []envelope.KeyID {
	if list := h.retained.Load(); list != nil {
		return *list
	}
	return nil
}

// noteOthers keeps what the view says of the keys that are not current.
func (h *Health) noteOthers(view envelope.View) {
	var list []Pending
	var retained []envelope.KeyID
	for i := range view.Versions {
		v := &view.Versions[i]
		if v.State == envelope.Retained {
			retained = append(retained, v.ID)
		}
		if v.State == envelope.Pending {
			p := Pending{Key: v.ID, Activates: v.Activation, Ready: v.Ready}
			if view.Deferred != nil && view.Deferred.ID == v.ID {
				p.Deferred, p.Why, p.Until = true, v.WhyHeldBack(), v.HeldUntil()
			}
			list = append(list, p)
		}
	}
	h.pending.Store(&list)
	h.retained.Store(&retained)
}
