package retire

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
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
		if err != nil && hint.Of(err) == "" {
			t.Errorf("%s: no hint: %v", name, err)
		}
	}
}

// From its successor's activation on, API servers learn of another key: evidence from before is none.
func TestSuccessor(t *testing.T) {
	t.Parallel()
	at := func(hours int) time.Time { return time.Date(2030, 1, 1, hours, 0, 0, 0, time.UTC) }
	version := func(id string, activation time.Time, state envelope.State) envelope.Version {
		return envelope.Version{Key: envelope.Key{ID: envelope.KeyID{Ring: "r", Version: id}, Activation: activation}, State: state}
	}
	ours := func(activation time.Time) string {
		id, err := envelope.NewCKAID(activation)
		if err != nil {
			t.Fatal(err)
		}
		return string(id)
	}
	one := ours(at(1))
	foreign := version("x01", time.Time{}, envelope.Retained)
	first, second, third := version(one, at(1), envelope.Retained), version(ours(at(2)), at(2), envelope.Retained), version(ours(at(3)), at(3), envelope.Current)
	conflicting := first
	conflicting.ID.Fingerprint[0] = 1
	for name, test := range map[string]struct {
		versions []envelope.Version
		of       envelope.KeyID
		want     time.Time
	}{
		"the next":                         {[]envelope.Version{first, second, third}, first.ID, at(2)},
		"the one after the next":           {[]envelope.Version{first, third}, first.ID, at(3)},
		"not its conflicting":              {[]envelope.Version{first, conflicting, third}, first.ID, at(3)},
		"not one made elsewhere":           {[]envelope.Version{foreign, version("x02", time.Time{}, envelope.Retained), second}, foreign.ID, at(2)},
		"one made elsewhere alone":         {[]envelope.Version{foreign, version("x02", time.Time{}, envelope.Current)}, foreign.ID, time.Time{}},
		"not one that is to come":          {[]envelope.Version{first, version(ours(at(9)), at(9), envelope.Pending)}, first.ID, time.Time{}},
		"not one that is not served":       {[]envelope.Version{first, version(ours(at(9)), at(9), envelope.Refused)}, first.ID, time.Time{}},
		"its own place does not matter":    {[]envelope.Version{foreign, first, second}, first.ID, at(2)},
		"the last of all has no successor": {[]envelope.Version{first, second}, second.ID, time.Time{}},
	} {
		if got := successor(test.versions, test.of, false); !got.Equal(test.want) {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
	// With several tokens a node may have held it back until the end of the grace, unless an emergency key ended that.
	second.Until, third.Until = second.Activation.Add(5*time.Hour), third.Activation.Add(5*time.Hour)
	if got := successor([]envelope.Version{first, second, third}, first.ID, true); !got.Equal(at(7)) {
		t.Errorf("several tokens: %s, want %s", got, at(7))
	}
	id, err := envelope.NewEmergencyCKAID(at(4))
	if err != nil {
		t.Fatal(err)
	}
	emergency := version(string(id), at(4), envelope.Current)
	emergency.Until = at(9)
	if got := successor([]envelope.Version{first, second, emergency}, first.ID, true); !got.Equal(at(4)) {
		t.Errorf("an emergency key: %s, want %s", got, at(4))
	}
}

// A token that cannot use the key just now must not make it look destroyed: what is not served has no fingerprint.
func TestUnserved(t *testing.T) {
	t.Parallel()
	id := envelope.KeyID{Ring: "r", Version: "x01", Fingerprint: [8]byte{1}}
	refused := func(version string, fingerprint byte) envelope.Version {
		return envelope.Version{
			Key:   envelope.Key{ID: envelope.KeyID{Ring: "r", Version: version, Fingerprint: [8]byte{fingerprint}}, Refused: "the token cannot use it now"},
			State: envelope.Refused, Tokens: []string{"hsm-b"},
		}
	}
	for name, test := range map[string]struct {
		version envelope.Version
		refused bool
	}{
		"it may be the key":                       {refused("x01", 0), true},
		"another version":                         {refused("x02", 0), false},
		"its conflicting, which refuseKeys names": {refused("x01", 2), false},
	} {
		now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
		inUse := envelope.Version{Key: envelope.Key{ID: envelope.KeyID{Ring: "r", Version: "x03", Fingerprint: [8]byte{3}}}, State: envelope.Current}
		p := Judge(Request{KeyID: id}, Facts{
			Now: now, View: envelope.View{Versions: []envelope.Version{inUse, test.version}}, Destruction: Destruction{Begun: now.Add(-time.Hour)},
		})
		if got := len(p.Refusals); (got == 1) != test.refused {
			t.Errorf("%s: %d refusals: %+v", name, got, p.Refusals)
		}
	}
}

// The current key must work on every token: a node that has only the one on which it does not goes on under an older key.
func TestCurrentKeyOnEveryToken(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	version := func(n byte, age time.Duration, state envelope.State, tokens ...string) envelope.Version {
		return envelope.Version{
			Key:   envelope.Key{ID: envelope.KeyID{Ring: "r", Version: "x01", Fingerprint: [8]byte{n}}, Activation: now.Add(-age)},
			State: state, Tokens: tokens,
		}
	}
	for says, current := range map[string]envelope.Version{
		"is not on the token b":                       version(2, time.Hour, envelope.Current, "a"),
		"is on the token b and cannot be used there:": version(2, time.Hour, envelope.Current, "a", "b"),
	} {
		current.Waits = []envelope.Wait{{Token: "b", Lacks: true}}
		old := version(1, 2*time.Hour, envelope.Retained, "a", "b")
		p := Judge(Request{KeyID: old.ID}, Facts{
			Now: now, Tokens: []Token{{Name: "a"}, {Name: "b"}},
			View: envelope.View{Versions: []envelope.Version{old, current}, Current: &current},
		})
		n := 0
		for _, refusal := range p.Refusals {
			if strings.Contains(refusal.Reason, says) && refusal.Hint != "" {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d refusals say that it %s: %+v", n, says, p.Refusals)
		}
	}
}

// A node waits for a token that is lost, until the end of the grace, and goes on under the old key.
func TestSuccessorWithTokenLost(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	version := func(n byte, at time.Time, state envelope.State) envelope.Version {
		return envelope.Version{
			Key:   envelope.Key{ID: envelope.KeyID{Ring: "r", Version: "x01", Fingerprint: [8]byte{n}}, Activation: at},
			State: state, Tokens: []string{"a"}, Until: at.Add(24 * time.Hour),
		}
	}
	old, current := version(1, time.Time{}, envelope.Retained), version(2, now.Add(-time.Hour), envelope.Current)
	for lost, want := range map[string]time.Time{"": current.Activation, "b": current.Until} {
		r := Request{KeyID: old.ID}
		if lost != "" {
			r.Accepted.TokensLost = []string{lost}
		}
		p := Judge(r, Facts{Now: now, Tokens: []Token{{Name: "a"}}, View: envelope.View{Versions: []envelope.Version{old, current}, Current: &current}})
		if !p.Successor.Equal(want) {
			t.Errorf("lost %q: the key that followed was current on every node from %s on, want %s", lost, p.Successor, want)
		}
	}
}

// An API server may write under the key for as long as a hold lasts, and keep a DEK for a day after that: so long must lie
// between the reports, whatever --settle says.
func TestSettlesWithHolds(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 1, 10, 0, 0, 0, 0, time.UTC)
	version := func(n byte, age time.Duration, state envelope.State) envelope.Version {
		return envelope.Version{
			Key:   envelope.Key{ID: envelope.KeyID{Ring: "r", Version: "x01", Fingerprint: [8]byte{n}}, Activation: now.Add(-age)},
			State: state, Tokens: []string{"a"},
		}
	}
	old, current := version(1, 1000*time.Hour, envelope.Retained), version(2, 500*time.Hour, envelope.Current)
	report := func(at time.Time) *evidence.Report {
		return &evidence.Report{Time: at.Format(time.RFC3339Nano), Objects: 1, Sources: []evidence.Reading{{}}}
	}
	for name, test := range map[string]struct {
		change func(*Request, *Facts)
		want   time.Duration
		warned bool
	}{
		"no hold":               {func(*Request, *Facts) {}, time.Hour, false},
		"of the configuration":  {func(r *Request, _ *Facts) { r.OutageHold = 6 * time.Hour }, 30 * time.Hour, true},
		"of the plugin":         {func(_ *Request, f *Facts) { f.Plugin.Hold = 7 * time.Hour }, 31 * time.Hour, true},
		"of a Lease now":        {func(_ *Request, f *Facts) { f.Etcd.Sources[0].OutageHold = "8h0m0s" }, 32 * time.Hour, true},
		"of a Lease then":       {func(_ *Request, f *Facts) { f.Evidence.Report.Sources[0].OutageHold = "9h0m0s" }, 33 * time.Hour, true},
		"the longest of them":   {func(r *Request, f *Facts) { r.OutageHold, f.Plugin.Hold = 72*time.Hour, time.Hour }, 96 * time.Hour, true},
		"a longer --settle":     {func(r *Request, _ *Facts) { r.Settle, r.OutageHold = 100*time.Hour, 72*time.Hour }, 100 * time.Hour, false},
		"a Lease without sense": {func(_ *Request, f *Facts) { f.Etcd.Sources[0].OutageHold = "long" }, time.Hour, false},
	} {
		r := Request{KeyID: old.ID, Settle: time.Hour, EvidenceFile: "report.json", AuditPath: "/audit.log", Rehearsed: true, Named: 1}
		f := Facts{
			Now: now, Tokens: []Token{{Name: "a"}}, View: envelope.View{Versions: []envelope.Version{old, current}, Current: &current},
			Evidence: &gate.File{Report: report(now.Add(-2 * time.Hour)), Time: now.Add(-2 * time.Hour)}, Etcd: report(now),
		}
		test.change(&r, &f)
		p := Judge(r, f)
		tooSoon := slices.ContainsFunc(p.Refusals, func(r gate.Refusal) bool {
			return strings.Contains(r.Reason, test.want.String()+" (--settle) must lie")
		})
		warned := slices.ContainsFunc(p.Warnings, func(w string) bool {
			return strings.Contains(w, "must lie between the reports, whatever --settle says")
		})
		if p.Settled != test.want || p.Settle != test.want.String() || tooSoon != (test.want > 2*time.Hour) || warned != test.warned {
			t.Errorf("%s: settles for %s (%s), refused %v, warned %v: %+v", name, p.Settled, p.Settle, tooSoon, warned, p.Refusals)
		}
	}
}

// unknowing fails as a ring does that does not hold the key.
type unknowing struct{}

func (unknowing) Open(context.Context, string, []byte) ([]byte, error) {
	return nil, envelope.ErrUnknownKey
}

// Open under a destroyed key names the destruction, and under its hold too.
func TestRemembersForHolds(t *testing.T) {
	t.Parallel()
	key := envelope.KeyID{Ring: "r", Version: "x01"}
	r := remembering{unknowing{}, map[string]Destruction{key.String(): {Ended: time.Unix(0, 0)}}}
	for _, text := range []string{key.String(), key.HoldString()} {
		if _, err := r.Open(t.Context(), text, nil); !errors.Is(err, envelope.ErrUnknownKey) || !strings.Contains(err.Error(), "destroyed it at 1970-01-01T00:00:00Z") {
			t.Errorf("%s: %v", text, err)
		}
	}
}
