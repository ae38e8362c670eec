package main

import (
	"errors"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
)

// A clock that is behind must not make a key in use look pending.
func TestClockIsPlausible(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	version := func(activation time.Time, state envelope.State) envelope.Version {
		return envelope.Version{Key: envelope.Key{Activation: activation}, State: state}
	}
	old, next := version(now.Add(-time.Hour), envelope.Current), version(now.Add(time.Hour), envelope.Pending)
	for name, test := range map[string]struct {
		versions []envelope.Version
		proven   time.Time
		refused  bool
	}{
		"one in use, one to come":            {[]envelope.Version{old, next}, now.Add(-time.Minute), false},
		"proven later than now":              {[]envelope.Version{old, next}, now.Add(time.Minute), true},
		"all to come":                        {[]envelope.Version{next}, time.Time{}, true},
		"a key made elsewhere is in use":     {[]envelope.Version{version(time.Time{}, envelope.Current), next}, time.Time{}, false},
		"only one that is not served is due": {[]envelope.Version{version(time.Time{}, envelope.Refused), next}, time.Time{}, true},
		"an empty ring":                      {nil, time.Time{}, false},
	} {
		err := clockIsPlausible(test.versions, health.Proven{At: test.proven}, now)
		if (err != nil) != test.refused {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (!errors.Is(err, errFinding) || hint.Of(err) == "") {
			t.Errorf("%s: exit code or hint is missing: %v", name, err)
		}
	}
}
