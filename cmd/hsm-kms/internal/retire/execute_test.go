package retire

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin/audit"
)

// scripted is a set of tokens that answers as it is told.
type scripted struct {
	done  []hsm.Destruction
	err   error
	asked int
}

func (s *scripted) Destroy(context.Context, envelope.KeyID) ([]hsm.Destruction, error) {
	s.asked++
	return s.done, s.err
}

func oldID() envelope.KeyID {
	return envelope.KeyID{Ring: "r", Version: "x01", Fingerprint: [8]byte{1}}
}

func sound() *Plan {
	v := envelope.Version{Key: envelope.Key{ID: oldID()}, State: envelope.Retained, Tokens: []string{"hsm-a", "hsm-b"}}
	return &Plan{
		Content: Content{Format: format, KeyID: v.ID.String(), State: string(v.State), Accepted: []string{"sole-cluster"}}, Target: v, Whole: true,
	}
}

// trailIn is a trail in a folder, and the records that it has, as "OPERATION CODE OBJECT REASON".
func trailIn(dir string) (trail Trail, records func(t *testing.T) []string) {
	path := filepath.Join(dir, "audit.log")
	trail = Trail{User: "root", Open: func() (*audit.Writer, error) { return audit.OpenBeside(path, TrailName, false) }}
	return trail, func(t *testing.T) []string {
		t.Helper()
		text, err := os.ReadFile(audit.Beside(path, TrailName))
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for line := range strings.Lines(string(text)) {
			var r struct{ Operation, Code, Object, Reason string }
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(r.Operation, "keys.retire") {
				all = append(all, strings.TrimPrefix(r.Operation, "keys.retire.")+" "+r.Code+" "+r.Object+" "+r.Reason)
			}
		}
		return all
	}
}

// The outcome is reported as it is, token by token, in the answer, the error and the trail.
func TestExecute(t *testing.T) {
	t.Parallel()
	failed := errors.New("CKR_DEVICE_ERROR")
	on := func(token string, outcome hsm.Outcome) hsm.Destruction {
		d := hsm.Destruction{Token: token, Outcome: outcome}
		if outcome != hsm.Destroyed {
			d.Err = failed
		}
		return d
	}
	for name, test := range map[string]struct {
		tokens scripted
		want   []Outcome
		end    string // of the trail
		said   string // the error; empty: none
		ended  bool   // the trail says that the key is gone
	}{
		"destroyed": {
			scripted{done: []hsm.Destruction{on("hsm-a", hsm.Destroyed), on("hsm-b", hsm.Destroyed)}},
			[]Outcome{{"hsm-a", "destroyed"}, {"hsm-b", "destroyed"}}, "end OK hsm-a,hsm-b by root; destroyed on hsm-a, hsm-b", "", true,
		},
		"the second did not hold it any more": {
			scripted{done: []hsm.Destruction{on("hsm-a", hsm.Destroyed)}},
			[]Outcome{{"hsm-a", "destroyed"}}, "end OK hsm-a by root; destroyed on hsm-a", "", true,
		},
		"the first failed": {
			scripted{done: []hsm.Destruction{on("hsm-a", hsm.Kept), on("hsm-b", hsm.Kept)}, err: failed},
			[]Outcome{{"hsm-a", "kept"}, {"hsm-b", "kept"}}, "end Unavailable  by root; kept on hsm-a, hsm-b", "(kept on hsm-a, hsm-b): CKR_DEVICE_ERROR", false,
		},
		"the second is unknown": {
			scripted{done: []hsm.Destruction{on("hsm-a", hsm.Destroyed), on("hsm-b", hsm.Unknown)}, err: failed},
			[]Outcome{{"hsm-a", "destroyed"}, {"hsm-b", "unknown"}}, "end Unknown hsm-a by root; destroyed on hsm-a; unknown on hsm-b",
			"(destroyed on hsm-a; unknown on hsm-b): CKR_DEVICE_ERROR", false,
		},
		"the first is unknown": {
			scripted{done: []hsm.Destruction{on("hsm-a", hsm.Unknown), on("hsm-b", hsm.Kept)}, err: failed},
			[]Outcome{{"hsm-a", "unknown"}, {"hsm-b", "kept"}}, "end Unknown  by root; kept on hsm-b; unknown on hsm-a",
			"(kept on hsm-b; unknown on hsm-a)", false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			trail, records := trailIn(dir)
			p := sound()
			got, err := p.Execute(t.Context(), &test.tokens, trail, Grounds{})
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
			if (err == nil) != (test.said == "") || err != nil && (!strings.Contains(err.Error(), test.said) || !errors.Is(err, failed) || hint.Of(err) == "") {
				t.Errorf("%v, want %q", err, test.said)
			}
			want := []string{"begin OK hsm-a,hsm-b by root; retained; plan " + p.Hash(), "accepted OK sole-cluster by root", test.end}
			if diff := cmp.Diff(want, records(t)); diff != "" {
				t.Error(diff)
			}
			known, err := Destructions(filepath.Join(dir, "audit.log"))
			if is := known[p.KeyID]; err != nil || is.Begun.IsZero() || is.Ended.IsZero() == test.ended {
				t.Errorf("the trail says %+v, %v", is, err)
			}
			if test.ended {
				return
			}
			// The next run finds the key on no token, and completes the record.
			facts := Facts{Now: time.Now(), Destruction: known[p.KeyID], View: inUse()}
			next := Judge(Request{KeyID: p.Target.ID}, facts)
			if len(next.Refusals) > 0 {
				t.Fatalf("the next run: %+v", next.Refusals)
			}
			if err := next.Complete(trail); err != nil {
				t.Fatal(err)
			}
			if known, err = Destructions(filepath.Join(dir, "audit.log")); err != nil || known[p.KeyID].Ended.IsZero() {
				t.Errorf("after the next run the trail says %+v, %v", known[p.KeyID], err)
			}
		})
	}
}

// A FIFO in the place of the trail is an error, and no trail without records.
func TestTrailIsFIFO(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	if err := unix.Mkfifo(audit.Beside(path, TrailName), 0o600); err != nil {
		t.Fatal(err)
	}
	if known, err := Destructions(path); err == nil {
		t.Errorf("no error: %v", known)
	}
}

// inUse is a ring with one key, which is not the one that is retired.
func inUse() envelope.View {
	v := envelope.Version{Key: envelope.Key{ID: envelope.KeyID{Ring: "r", Version: "x09", Fingerprint: [8]byte{9}}}, State: envelope.Current, Tokens: []string{"hsm-a"}}
	return envelope.View{Versions: []envelope.Version{v}, Current: &v}
}

// Without a record nothing is destroyed, and a plan that something speaks against is not carried out.
func TestExecuteRefuses(t *testing.T) {
	t.Parallel()
	broken := Trail{Open: func() (*audit.Writer, error) { return nil, errors.New("disk full") }}
	for name, test := range map[string]struct {
		change func(*Plan)
		trail  Trail
		kept   int
	}{
		"no trail":    {func(*Plan) {}, broken, 2},
		"a refusal":   {func(p *Plan) { p.Refusals = []gate.Refusal{{Reason: "no"}} }, Trail{}, 0},
		"not a whole": {func(p *Plan) { p.Whole = false }, Trail{}, 0},
	} {
		tokens, p := &scripted{}, sound()
		test.change(p)
		got, err := p.Execute(t.Context(), tokens, test.trail, Grounds{})
		if err == nil || tokens.asked != 0 || len(With(got, hsm.Kept)) != test.kept {
			t.Errorf("%s: %+v, %v; the tokens were asked %d times", name, got, err, tokens.asked)
		}
	}
}

// The record of an end that cannot be written is told together with what was done.
func TestExecuteWithoutEnd(t *testing.T) {
	t.Parallel()
	trail, _ := trailIn(t.TempDir())
	open, opened := trail.Open, 0
	trail.Open = func() (*audit.Writer, error) {
		if opened++; opened == 2 {
			return nil, errors.New("disk full")
		}
		return open()
	}
	tokens := &scripted{done: []hsm.Destruction{{Token: "hsm-a", Outcome: hsm.Destroyed}}}
	got, err := sound().Execute(t.Context(), tokens, trail, Grounds{})
	if err == nil || !strings.Contains(err.Error(), "(destroyed on hsm-a): disk full") || len(With(got, hsm.Destroyed)) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}

// The hash stands for everything that a plan is the same by, and says what differs.
func TestPlanHash(t *testing.T) {
	t.Parallel()
	base := func() *Plan {
		p := sound()
		p.Content = Content{
			Format: format, KeyID: "k", State: "retained", Tokens: []Token{{"hsm-a", "s1", true}}, Ring: []Key{{"k", "retained"}, {"n", "current"}}, Cluster: "u",
			Evidence: "e", Snapshot: []string{"a", "b"}, Settle: "24h0m0s", Etcd: []Etcd{{"cafe", []string{"/registry"}}}, Accepted: []string{"sole-cluster"},
		}
		return p
	}
	const golden = `{"format":"hsm-kms/retire/1","keyID":"k","state":"retained","tokens":[{"name":"hsm-a","serial":"s1","holds":true}],` +
		`"ring":[{"keyID":"k","state":"retained"},{"keyID":"n","state":"current"}],"cluster":"u","evidence":"e","snapshots":["a","b"],"settle":"24h0m0s",` +
		`"etcd":[{"cluster":"cafe","prefixes":["/registry"]}],"accepted":["sole-cluster"]}`
	if got := string(base().encoded()); got != golden {
		t.Errorf("the encoding is\n%s, want\n%s", got, golden)
	}
	if refusals := base().Check(base().Hash()); refusals != nil {
		t.Errorf("the same plan: %+v", refusals)
	}
	// The plan was made with this, and is base now.
	for what, change := range map[string]func(*Content){
		"accepted":            func(c *Content) { c.Accepted = []string{} },
		"accepted, etcd":      func(c *Content) { c.Accepted, c.Etcd = []string{"no-etcd", "sole-cluster"}, []Etcd{} },
		"snapshots":           func(c *Content) { c.Snapshot = c.Snapshot[:1] },
		"state of another":    func(c *Content) { c.Ring[1].State = "pending" },
		"keys of the ring":    func(c *Content) { c.Ring = c.Ring[:1] },
		"holds":               func(c *Content) { c.Tokens[0].Holds = false },
		"serial":              func(c *Content) { c.Tokens[0].Serial = "s2" },
		"key_id":              func(c *Content) { c.KeyID = "j" },
		"evidence":            func(c *Content) { c.Evidence = "f" },
		"cluster id of etcd":  func(c *Content) { c.Etcd[0].Cluster = "beef" },
		"prefixes":            func(c *Content) { c.Etcd[0].Prefixes = []string{"/other"} },
		"cluster of the ring": func(c *Content) { c.Cluster = "v" },
		"settle":              func(c *Content) { c.Settle = "1h0m0s" },
	} {
		then, now := base(), base()
		change(&then.Content)
		got := now.Check(then.Hash())
		want := "--plan is " + then.Hash() + ", and it is now " + now.Hash()
		if len(got) != 1 || !strings.Contains(got[0].Reason, want) || got[0].Hint == "" {
			t.Errorf("%s: %+v", what, got)
		}
		if differs := now.Differs(then); differs == "" {
			t.Errorf("%s: no difference is named", what)
		}
	}
	if said := base().Differs(base()); said != "" {
		t.Errorf("the same plan differs: %s", said)
	}
	if IsHash("") || IsHash("00") || IsHash(strings.Repeat("z", 64)) || !IsHash(base().Hash()) {
		t.Error("IsHash")
	}
}

// pendingFacts are those of a pending key that nothing speaks against.
func pendingFacts() (Request, Facts) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	view := inUse()
	view.Versions = append(view.Versions, envelope.Version{
		Key: envelope.Key{ID: oldID(), Activation: now.Add(time.Hour)}, State: envelope.Pending, Tokens: []string{"hsm-a"},
	})
	report := &evidence.Report{
		Time: now.Format(time.RFC3339Nano), Objects: 1,
		Resources: []evidence.Resource{{Resource: "secrets", Total: 1, Keys: []evidence.Key{{KeyID: view.Versions[0].ID.String(), Objects: 1}}}},
		Sources:   []evidence.Reading{{Cluster: "cafe", Prefixes: []string{"/registry"}, ClusterUIDs: []string{"u"}}},
	}
	return Request{KeyID: oldID(), AuditPath: "/audit.log"},
		Facts{Now: now, View: view, Tokens: []Token{{Name: "hsm-a", Serial: "s1"}, {Name: "hsm-b", Serial: "s2"}}, Cluster: "u", Etcd: report}
}

// A pending key is withdrawn only when nothing that can be known says that it may be in use.
func TestJudgePending(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change   func(*Request, *Facts)
		want     string // the refusal; empty: none
		warnings []string
	}{
		"nothing speaks against it": {func(*Request, *Facts) {}, "", []string{"no API server holds a DEK", "no Lease"}},
		"a clock is known":          {func(_ *Request, f *Facts) { f.Etcd.Sources[0].Clock = "2030-01-01T00:00:00Z" }, "", []string{"no API server holds a DEK"}},
		"etcd was not read":         {func(_ *Request, f *Facts) { f.Etcd, f.EtcdErr = nil, errors.New("refused") }, "it is not clear whether anything in etcd is under r/x01/0100000000000000: refused", nil},
		"nor to be read":            {func(r *Request, f *Facts) { r.NoEtcd, f.Etcd = true, nil }, "", []string{"etcd was not read (--no-etcd)"}},
		"it is in the trail":        {func(r *Request, f *Facts) { r.NoEtcd, f.Etcd, f.Used = true, nil, "Encrypt at noon" }, "is in use: the audit trail of this machine has it (Encrypt at noon)", []string{"etcd"}},
		"the trail cannot be read":  {func(r *Request, f *Facts) { r.NoEtcd, f.Etcd, f.UsedErr = true, nil, os.ErrPermission }, "whether the plugin of this machine was asked about", []string{"etcd"}},
		"there is no trail":         {func(r *Request, f *Facts) { r.NoEtcd, f.Etcd, r.AuditPath = true, nil, "" }, "", []string{"never sealed under", "etcd"}},
		"it was proven here":        {func(r *Request, f *Facts) { r.NoEtcd, f.Etcd, f.Proven.Key = true, nil, oldID() }, "the plugin of this machine proved", []string{"etcd"}},
		"the plugin names it": {func(r *Request, f *Facts) {
			r.NoEtcd, f.Etcd, f.Plugin = true, nil, Plugin{Answered: true, KeyID: oldID().String()}
		}, "the plugin of this machine names", []string{"etcd"}},
		"the plugin names its hold": {func(r *Request, f *Facts) {
			r.NoEtcd, f.Etcd, f.Plugin = true, nil, Plugin{Answered: true, KeyID: oldID().HoldString()}
		}, "the plugin of this machine names " + oldID().HoldString(), []string{"etcd"}},
		"something is under its hold": {func(_ *Request, f *Facts) {
			f.Etcd.Resources[0].Keys[0].KeyID = oldID().HoldString()
		}, "etcd now: 1 object under", []string{"DEK", "no Lease"}},
		"the plugin says nothing": {func(r *Request, f *Facts) {
			r.NoEtcd, f.Etcd, f.Plugin.Err = true, nil, errors.New("hangs")
		}, "it is not clear which key the plugin of this machine writes under", []string{"etcd"}},
		"something is under it": {func(_ *Request, f *Facts) {
			f.Etcd.Resources[0].Keys[0].KeyID = oldID().String()
		}, "etcd now: 1 object under", []string{"DEK", "no Lease"}},
		"it is close":     {func(_ *Request, f *Facts) { f.Now = f.Now.Add(56 * time.Minute) }, "becomes current in 4m0s", []string{"DEK", "no Lease"}},
		"a token is away": {func(_ *Request, f *Facts) { f.Problems = []error{errors.New("hsm-b is away")} }, "every configured token can be reached: hsm-b is away", nil},
	} {
		r, f := pendingFacts()
		test.change(&r, &f)
		p := Judge(r, f)
		switch {
		case test.want == "" && len(p.Refusals) > 0, test.want != "" && (len(p.Refusals) != 1 || !strings.Contains(p.Refusals[0].Reason, test.want)):
			t.Errorf("%s: %+v, want %q", name, p.Refusals, test.want)
		case test.want != "" && p.Refusals[0].Hint == "" && f.Plugin.Err == nil:
			t.Errorf("%s: no hint with %q", name, p.Refusals[0].Reason)
		}
		if !slices.EqualFunc(p.Warnings, test.warnings, strings.Contains) {
			t.Errorf("%s: warnings %q, want %q", name, p.Warnings, test.warnings)
		}
		if test.want == "" && (!p.Whole || !slices.Equal(p.Tokens, []Token{{"hsm-a", "s1", true}, {"hsm-b", "s2", false}}) || slices.Contains(p.Accepted, "no-etcd") != r.NoEtcd) {
			t.Errorf("%s: the plan is %s", name, p.encoded())
		}
	}
}

// A disk that hangs keeps the record of the beginning for so long that a pending key comes near its activation: it is kept.
func TestExecuteTooLate(t *testing.T) {
	t.Parallel()
	trail, records := trailIn(t.TempDir())
	open := trail.Open
	p := sound()
	p.Target.State = envelope.Pending
	p.Before = time.Now().Add(100 * time.Millisecond)
	trail.Open = func() (*audit.Writer, error) {
		time.Sleep(time.Until(p.Before))
		return open()
	}
	tokens := scripted{}
	got, err := p.Execute(t.Context(), &tokens, trail, Grounds{})
	want := []Outcome{{"hsm-a", "kept"}, {"hsm-b", "kept"}}
	if !slices.Equal(got, want) || err == nil || !strings.Contains(err.Error(), "a node may have sealed under it by now") || tokens.asked != 0 {
		t.Errorf("%+v, %v, asked %d times", got, err, tokens.asked)
	}
	if all := records(t); !strings.HasPrefix(all[len(all)-1], "end Unavailable ") {
		t.Errorf("the trail: %q", all)
	}
}
