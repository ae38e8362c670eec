package health

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/problem"
)

// changes writes one log line for each change of state, however often the state is seen: an outage of an hour is two
// lines. Only reported may be called from several goroutines.
type changes struct {
	logger *slog.Logger

	mu   sync.Mutex // guards the fields below
	last string     // what reported said last

	// Of the goroutine that probes, and unwritten of the one that keeps.
	versions   map[string]string // by key_id: the state last logged
	duplicated string            // what duplicates said last
	missing    []string          // the tokens that missingOn named last
	unread     bool              // the last Refresh failed
	unwritten  bool              // the last write of proven.json failed; keep's own
}

// reported logs the state of Status, and reports whether it is another than before. The cause may differ from probe to
// probe; the class and the key_id are the state.
func (c *changes) reported(cause error, class problem.Class, keyID string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	state := class.Words + "|" + keyID
	if state == c.last {
		return false
	}
	c.last = state
	switch {
	case cause == nil:
		c.logger.Info("status is ok", "keyID", keyID)
	case keyID != "":
		c.logger.Error("status is not ok, and keeps the key_id", "healthz", class.Words, "keyID", keyID, "error", cause, "hint", class.Hint)
	default:
		c.logger.Error("status is an error", "code", class.Code.String(), "healthz", class.Words, "error", cause, "hint", class.Hint)
	}
	return true
}

// seen logs where each version stands when that has changed.
func (c *changes) seen(view envelope.View) {
	now := make(map[string]string, len(view.Versions))
	for i := range view.Versions {
		v := &view.Versions[i]
		name := v.ID.String()
		if v.State == envelope.Refused {
			// Refused keys have no fingerprint, and several may share a CKA_ID.
			name = fmt.Sprintf("%s %x %s", name, v.CKAID, v.Refused)
		}
		now[name] = standing(v, view, c.versions[name])
		if now[name] != c.versions[name] {
			c.version(v, now[name])
		}
	}
	for name := range c.versions {
		if _, there := now[name]; !there {
			c.logger.Warn("key is gone from the ring", "keyID", name)
		}
	}
	c.versions = now
	c.duplicates(view.Duplicates)
	c.missingOn(view)
}

// missingOn logs that the current key is missing on a token, when that begins, changes or ends.
func (c *changes) missingOn(view envelope.View) {
	missing := view.Missing()
	if slices.Equal(missing, c.missing) {
		return
	}
	c.missing = missing
	switch {
	case missing != nil:
		c.logger.Warn("the current key is missing, or cannot be used, on a token of the configuration: it cannot take over", "keyID", view.Current.ID.String(),
			"tokens", missing, "hint", "copy the key to these tokens with the vendor's tool, or repair the token that cannot use its copy")
	case view.Current != nil:
		c.logger.Info("the current key is missing on no token any more", "keyID", view.Current.ID.String())
	}
}

// duplicates logs that versions share a CKA_ID, when that begins, changes or ends.
func (c *changes) duplicates(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text == c.duplicated {
		return
	}
	c.duplicated = text
	if err == nil {
		c.logger.Info("no two keys share a CKA_ID any more")
		return
	}
	c.logger.Error("two keys of the ring share a CKA_ID; both are served for Decrypt", "error", err,
		"hint", envelope.ConflictHint)
}

// standing is a version's state for the log. A pending key stays ready once it was: readiness comes and goes with the
// tokens, which have lines of their own.
func standing(v *envelope.Version, view envelope.View, before string) string {
	switch {
	case view.Deferred != nil && view.Deferred.ID == v.ID:
		return "deferred"
	case v.State == envelope.Pending && (v.Ready || before == "ready"):
		return "ready"
	}
	return string(v.State)
}

func (c *changes) version(v *envelope.Version, state string) {
	keyID := v.ID.String()
	switch state {
	case "deferred":
		c.logger.Warn("key is due, and deferred until it is proven on every token of the configuration", "keyID", keyID, "reason", v.WhyHeldBack(),
			"tokens", v.Tokens, "hint", "copy the key to the tokens that lack it, and make the others reachable; its predecessor stays current until then")
	case "ready":
		c.logger.Info("key is ready for its activation", "keyID", keyID, "activates", v.Activation)
	case string(envelope.Pending):
		c.logger.Info("key is pending", "keyID", keyID, "activates", v.Activation)
	case string(envelope.Current):
		c.logger.Info("key is current", "keyID", keyID)
	case string(envelope.Refused):
		c.logger.Warn("key on the token is not served", "keyID", keyID, "reason", v.Refused)
	default:
		c.logger.Info("key is "+state, "keyID", keyID)
	}
}

// refreshed logs that the ring can no longer be read, and that it can again.
func (c *changes) refreshed(err error) {
	if (err != nil) == c.unread {
		return
	}
	c.unread = err != nil
	if err != nil {
		c.logger.Error("the key ring cannot be read; what was read of it before, if anything, is served", "error", err, "hint", problem.Of(err).Hint)
		return
	}
	c.logger.Info("the key ring can be read again")
}

// kept logs that the proven key_id can no longer be written to stateDir, and that it can again.
func (c *changes) kept(err error) {
	if (err != nil) == c.unwritten {
		return
	}
	c.unwritten = err != nil
	if err != nil {
		c.logger.Warn("the last proven key_id cannot be kept; a restart during an HSM outage could not name it", "error", err,
			"hint", "check that stateDir exists and that this user can write to it")
		return
	}
	c.logger.Info("the last proven key_id is kept again")
}
