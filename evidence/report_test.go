package evidence_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/evidence"
)

func build(t *testing.T, opts evidence.ReportOptions, sources ...evidence.Source) *evidence.Report {
	t.Helper()
	r, err := evidence.Build(t.Context(), sources, opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestReport(t *testing.T) {
	t.Parallel()
	h := newHSM()
	m := store(t, h, 150)
	m.put("secrets/ns/plain", []byte("k8s\x00plain"))
	m.put("secrets/ns/cbc", []byte("k8s:enc:aescbc:v1:key1:0123456789abcdef"))
	m.put("secrets/ns/cut", []byte("k8s:enc:kms:v2:hsm-kms:\x0a\xff"))
	m.put("secrets/ns/v1", []byte("k8s:enc:kms:v1:old:\x00\x03dekdata"))
	m.put("example.com/widgets/ns/w", []byte(`{"kind":"Widget"}`))
	m.put("deployments/ns/d", []byte("k8s\x00"))
	m.putPast("secrets/ns/plain", []byte("k8s\x00older"))
	other := &memory{}
	other.put("events/ns/e", []byte("k8s\x00"))
	now := time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)
	r := build(t, evidence.ReportOptions{Now: func() time.Time { return now }}, m, other)
	want := &evidence.Report{
		Time: "2026-02-03T04:05:06Z", Revision: 307, Objects: 307, Plaintext: 4, Undecodable: 1,
		Resources: []evidence.Resource{
			{Resource: "deployments.apps", Total: 1, Plaintext: 1, Keys: []evidence.Key{}},
			{Resource: "events", Total: 1, Plaintext: 1, Keys: []evidence.Key{}},
			{Resource: "secrets", Total: 304, Plaintext: 1, Undecodable: 1, Keys: []evidence.Key{
				{Provider: "aescbc:v1:key1", Objects: 1},
				{Provider: "kms:v1:old", Objects: 1, DEKs: 1},
				{Provider: "kms:v2:hsm-kms", KeyID: "ring/x01/old", Objects: 150, DEKs: 2},
				{Provider: "kms:v2:hsm-kms", KeyID: "ring/x02/new", Objects: 150, DEKs: 2},
			}},
			{Resource: "widgets.example.com", Total: 1, Plaintext: 1, Keys: []evidence.Key{}},
		},
		History: []evidence.Resource{{Resource: "secrets", Total: 1, Plaintext: 1, Keys: []evidence.Key{}}},
		Sources: []evidence.Reading{
			{Name: "memory", Revision: 307, Prefixes: []string{"/registry"}, Unreadable: []string{}, ClusterUIDs: []string{}},
			{Name: "memory", Revision: 1, Prefixes: []string{"/registry"}, Unreadable: []string{}, ClusterUIDs: []string{}},
		},
		Restricted:         []string{},
		UndecodableObjects: []evidence.Problem{{Key: "/registry/secrets/ns/cut", Reason: "EncryptedObject: reading field 1: unexpected EOF"}},
		Findings:           []evidence.Finding{},
	}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Error(diff)
	}
	// A report is kept and read again (keys retire --evidence).
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var again evidence.Report
	if err := json.Unmarshal(data, &again); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, &again); diff != "" {
		t.Error(diff)
	}
	if strings.Contains(string(data), "null") {
		t.Errorf("the JSON has nulls where lists are promised: %s", data)
	}
}

func TestReportOfSomeResources(t *testing.T) {
	t.Parallel()
	m := store(t, newHSM(), 2)
	m.put("example.com/widgets/ns/w", []byte("{"))
	m.put("pods/ns/p", []byte("k8s\x00"))
	r := build(t, evidence.ReportOptions{Resources: []string{"*.example.com", "pods"}}, m)
	if r.Objects != 2 || len(r.Resources) != 2 {
		t.Errorf("report = %+v", r)
	}
}

func TestRequireKey(t *testing.T) {
	t.Parallel()
	clean := store(t, newHSM(), 0)
	h := newHSM()
	clean.put("secrets/ns/a", sealed(t, h.dek("new", 1), "secrets/ns/a"))
	clean.put("pods/ns/p", []byte("k8s\x00"))
	clean.putPast("secrets/ns/a", sealed(t, h.dek("old", 1), "secrets/ns/a"))
	mixed := &memory{objects: append([]evidence.Object{}, clean.objects...)}
	mixed.put("secrets/ns/b", sealed(t, h.dek("old", 1), "secrets/ns/b"))
	mixed.put("secrets/ns/c", []byte("k8s:enc:secretbox:v1:k:x"))
	mixed.put("secrets/ns/d", []byte("{}"))
	mixed.put("secrets/ns/e", []byte("k8s:enc:"))
	plain := &memory{}
	plain.put("secrets/ns/a", []byte("{}"))
	plain.put("pods/ns/p", []byte("{}"))
	no := func(names ...string) evidence.Finding {
		return evidence.Finding{Problem: "no object at all is of " + strings.Join(names, ", ")}
	}
	for _, c := range []struct {
		name      string
		source    *memory
		key       string
		resources []string
		empty     bool
		want      []evidence.Finding
	}{
		{"all under it", clean, "new", []string{"secrets"}, false, nil},
		{"another", clean, "newer", []string{"secrets"}, false, []evidence.Finding{{"secrets", "under another key: new", 1}}},
		{"no key_id", clean, "", []string{"secrets"}, false, []evidence.Finding{{"secrets", "under another key: new", 1}}},
		{"other resource", clean, "new", []string{"pods"}, false, []evidence.Finding{{"pods", "plain text", 1}}},
		{"all resources", clean, "new", []string{"*.*"}, false, []evidence.Finding{{"pods", "plain text", 1}}},
		{"mixed", mixed, "new", []string{"secrets"}, false, []evidence.Finding{
			{"secrets", "plain text", 1}, {"secrets", "undecodable", 1}, {"secrets", "under another key: old", 1},
			{"secrets", "under another provider: secretbox:v1:k", 1},
		}},
		{"nothing found", &memory{}, "new", []string{"secrets"}, false, []evidence.Finding{{"", "no object at all was found: is the prefix right?", 0}}},
		{"a mistyped name over plain text", plain, "new", []string{"sercets"}, false, []evidence.Finding{{"sercets", "there is none; did you mean secrets?", 0}}},
		{"a mistyped name beside a right one", clean, "new", []string{"secrets", "secret"}, false, []evidence.Finding{{"secret", "there is none; did you mean secrets?", 0}}},
		{"the order does not matter", clean, "new", []string{"*.", "widgets.example.com"}, false, []evidence.Finding{{"widgets.example.com", "there is none", 0}, {"pods", "plain text", 1}}},
		{"a wildcard demands nothing", clean, "new", []string{"secrets", "*.apps"}, false, nil},
		{"a wildcard alone that has nothing", clean, "new", []string{"*.exmaple.com"}, false, []evidence.Finding{no("*.exmaple.com")}},
		{"empty, and allowed", clean, "new", []string{"widgets.example.com"}, true, nil},
		{"empty, allowed, and a key that nothing shows", clean, "made-up", []string{"widgets.example.com"}, true,
			[]evidence.Finding{{"", "no object at all is under made-up, so nothing shows that there is such a key", 0}}},
		{"a made-up key over plain text", plain, "made-up", []string{"secrets"}, true, []evidence.Finding{{"secrets", "plain text", 1}}},
	} {
		r := build(t, evidence.ReportOptions{AllowEmpty: true}, c.source)
		got := r.RequireKey(evidence.Required{KeyID: c.key, Resources: c.resources}, c.empty)
		less := func(a, b evidence.Finding) bool { return a.Problem < b.Problem }
		if diff := cmp.Diff(c.want, got, sortFindings(less)); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
		if len(r.Findings) != len(got) || r.Required == nil || r.Required.KeyID != c.key || r.Required.Newer == nil {
			t.Errorf("%s: the report has the findings %v of %+v", c.name, r.Findings, r.Required)
		}
	}
}

// The ring itself said which key is current: no object needs to show that there is such a key.
func TestRequireCurrent(t *testing.T) {
	t.Parallel()
	m := &memory{}
	m.put("pods/ns/p", []byte("k8s\x00"))
	r := build(t, evidence.ReportOptions{AllowEmpty: true}, m)
	if got := r.RequireKey(evidence.Required{KeyID: "newer", Resources: []string{"widgets.example.com"}, Current: true}, true); got != nil {
		t.Errorf("current: %v", got)
	}
}

// A prefix or resource that was named and not found is a finding, and so is an empty report.
func TestNothingThere(t *testing.T) {
	t.Parallel()
	m := &memory{prefixes: []string{"/registry", "/kubernetes.io"}}
	m.put("pods/ns/p", []byte("{}"))
	for name, c := range map[string]struct {
		source *memory
		opts   evidence.ReportOptions
		want   []evidence.Finding
	}{
		"a prefix":   {m, evidence.ReportOptions{}, []evidence.Finding{{"", "no object at all is below /kubernetes.io: is the prefix right?", 0}}},
		"a resource": {m, evidence.ReportOptions{Resources: []string{"*.apps", "pod"}}, []evidence.Finding{{"", "no object at all is below /kubernetes.io: is the prefix right?", 0}, {"pod", "there is none; did you mean pods?", 0}}},
		"all":        {&memory{}, evidence.ReportOptions{}, []evidence.Finding{{"", "no object at all was found: is the prefix right?", 0}}},
		"allowed":    {m, evidence.ReportOptions{Resources: []string{"pod"}, AllowEmpty: true}, []evidence.Finding{}},
	} {
		if diff := cmp.Diff(c.want, build(t, c.opts, c.source).Findings); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// An encrypted object that cannot be attributed is a finding whatever was asked for; a layout makes it what it is.
func TestUnattributed(t *testing.T) {
	t.Parallel()
	h := newHSM()
	m := &memory{}
	m.put("secrets/ns/a", sealed(t, h.dek("new", 1), "secrets/ns/a"))
	m.put("routes/shop/web", sealed(t, h.dek("old", 1), "routes/shop/web"))
	m.put("routes/shop/plain", []byte("{}"))
	m.put("others/shop/plain", []byte("{}"))
	unknown := evidence.Finding{"/registry/routes", "encrypted, and of no known resource: --resource-path RESOURCE=/registry/routes names it", 1}
	for _, resources := range [][]string{nil, {"secrets"}, {"*.*"}} {
		r := build(t, evidence.ReportOptions{Resources: resources}, m)
		if diff := cmp.Diff([]evidence.Finding{unknown}, r.Findings); diff != "" {
			t.Errorf("%q: %s", resources, diff)
		}
	}
	known, err := stored.NewResources(stored.Layout{Resource: "routes.route.openshift.io", Prefix: "/registry/routes"})
	if err != nil {
		t.Fatal(err)
	}
	r := build(t, evidence.ReportOptions{Known: known}, m)
	r.RequireKey(evidence.Required{KeyID: "new", Resources: []string{"secrets", "routes.route.openshift.io"}}, false)
	if diff := cmp.Diff([]evidence.Finding{{"routes.route.openshift.io", "plain text", 1}, {"routes.route.openshift.io", "under another key: old", 1}}, r.Findings); diff != "" {
		t.Error(diff)
	}
	if v, err := evidence.Verify(t.Context(), []evidence.Source{m}, h, evidence.VerifyOptions{Known: known, Resources: []string{"routes.route.openshift.io", "secret"}}); err != nil ||
		v.Objects != 2 || v.Verified != 1 || !slices.Equal(v.Missing, []string{"secret"}) {
		t.Errorf("verification = %+v, %v", v, err)
	}
}

// One key under two names of the provider is told.
func TestProviderNames(t *testing.T) {
	t.Parallel()
	h := newHSM()
	m := store(t, h, 2)
	renamed := h.dek("ring/x02/new", 0)
	renamed.Provider = "kms-b"
	m.put("secrets/ns/z", sealed(t, renamed, "secrets/ns/z"))
	r := build(t, evidence.ReportOptions{}, m)
	if diff := cmp.Diff([]evidence.KeyNames{{"ring/x02/new", []string{"kms:v2:hsm-kms", "kms:v2:kms-b"}}}, r.Names); diff != "" {
		t.Error(diff)
	}
}

func sortFindings(less func(a, b evidence.Finding) bool) cmp.Option {
	return cmp.Transformer("sorted", func(in []evidence.Finding) map[evidence.Finding]bool {
		out := map[evidence.Finding]bool{}
		for _, f := range in {
			out[f] = true
		}
		return out
	})
}

// Memory must not depend on what somebody wrote: neither on made-up key_ids nor on undecodable values.
func TestBounds(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	m := &memory{}
	const broken = 2*evidence.MaxNamed + 10
	for i := range broken {
		m.put(fmt.Sprintf("secrets/ns/%05d", broken-1-i), []byte("k8s:enc:"))
	}
	r := build(t, evidence.ReportOptions{}, m)
	if len(r.UndecodableObjects) != evidence.MaxNamed || r.Undecodable != broken {
		t.Errorf("%d named of %d", len(r.UndecodableObjects), r.Undecodable)
	}
	for i, named := range r.UndecodableObjects {
		if named.Key != fmt.Sprintf("/registry/secrets/ns/%05d", i) {
			t.Fatalf("the %d-th that is named is %s: not the first by key", i, named.Key)
		}
	}
	many := &memory{}
	for i := range 100_001 {
		many.put(fmt.Sprintf("made%d/ns/x", i), []byte("{}"))
	}
	if _, err := evidence.Build(t.Context(), []evidence.Source{many}, evidence.ReportOptions{}); err == nil {
		t.Error("any number of resources is counted")
	}
}

func TestReportFails(t *testing.T) {
	t.Parallel()
	want := errors.New("unreachable")
	if _, err := evidence.Build(t.Context(), []evidence.Source{&memory{err: want}}, evidence.ReportOptions{}); !errors.Is(err, want) {
		t.Errorf("error = %v", err)
	}
}

func TestPathOf(t *testing.T) {
	t.Parallel()
	prefixes := []string{"/registry", "/registry/inner", "/kubernetes.io"}
	for key, want := range map[string]string{
		"/registry/secrets/a": "secrets/a", "/registry/inner/secrets/a": "secrets/a", "/registry/": "", "/registry": "-", "/registry2/x": "-",
		"registry/x": "-", "": "-", "/kubernetes.io/pods/a/b": "pods/a/b",
	} {
		got, ours := evidence.PathOf(prefixes, []byte(key))
		if ours != (want != "-") || ours && string(got) != want {
			t.Errorf("PathOf(%q) = %q, %v; want %q", key, got, ours, want)
		}
	}
	for _, prefix := range []string{"/registry", "registry", "/registry/", "//registry//"} {
		if got := evidence.CleanPrefix(prefix); got != "/registry" {
			t.Errorf("CleanPrefix(%q) = %q", prefix, got)
		}
	}
}

// A range has one text, and a text one range.
func TestRangeText(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, c := range []struct{ from, to, want string }{
		{"", "/registry/", "../registry/"}, {"/registry0", "", "/registry0.."}, {"", "", ".."}, {"a.b", "a.c", "a.b..a.c"},
		{"a.", ".b", `a\x2e..\x2eb`}, {"a..b", "c", `a\x2e\x2eb..c`}, {"a", "b\x00", `a..b\x00`}, {"a\x1b[2J", "é", `a\x1b[2J..\xc3\xa9`}, {`a\x00`, "b", `a\x5cx00..b`},
		{"a", "b..c", `a..b\x2e\x2ec`}, {"a..b", "", `a\x2e\x2eb..`}, {"a b", "c", `a\x20b..c`},
	} {
		got := evidence.RangeText(c.from, c.to)
		if got != c.want || seen[got] {
			t.Errorf("RangeText(%q, %q) = %s, want %s", c.from, c.to, got, c.want)
		}
		seen[got] = true
	}
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"kube-secrets/hk1-0/01": "kube-secrets/hk1-0/01", "": "", "é": "é", `a\b`: `a\\b`, "a\x1b[2Jb": `a\x1b[2Jb`,
		"a\nb\tc\r": `a\x0ab\x09c\x0d`, "\xff\xfe": `\xff\xfe`, "\u202eabc": `\u{202e}abc`, "\u009b2J": `\u{9b}2J`, "\x7f": `\x7f`,
		"\u200b": `\u{200b}`, "\ufffd": "\ufffd", strings.Repeat("x", 1024): strings.Repeat("x", 1024),
	} {
		if got := evidence.Printable(text); got != want {
			t.Errorf("Printable(%q) = %q, want %q", text, got, want)
		}
	}
	if got := evidence.Printable(strings.Repeat("\x1b", 10000)); len(got) > 1100 || !strings.HasSuffix(got, "...(10000 bytes)") {
		t.Errorf("a long text gives %d bytes: %q", len(got), got[len(got)-40:])
	}
}

// Whatever the key and the value: counted in one place, never a crash, and nothing that moves a cursor.
func FuzzReport(f *testing.F) {
	h := newHSM()
	f.Add([]byte("secrets/ns/a"), sealed(f, h.dek("k", 1), "secrets/ns/a"))
	f.Add([]byte("\x1b[2J/x"), []byte("k8s:enc:kms:v2:\x1b:"))
	f.Fuzz(func(t *testing.T, path, value []byte) {
		m := &memory{}
		m.put(string(path), value)
		r, err := evidence.Build(t.Context(), []evidence.Source{m}, evidence.ReportOptions{})
		if err != nil || r.Objects != 1 || len(r.Resources) != 1 {
			t.Fatalf("%+v, %v", r, err)
		}
		one := r.Resources[0]
		sum := one.Plaintext + one.Undecodable
		for _, key := range one.Keys {
			sum += key.Objects
		}
		if sum != 1 || one.Total != 1 {
			t.Errorf("counted in %d places: %+v", sum, one)
		}
		v, err := evidence.Verify(t.Context(), []evidence.Source{m}, newHSM(), evidence.VerifyOptions{})
		if err != nil || v.Verified != 0 || v.Failed+v.Plaintext+v.Others+v.Undecodable != 1 {
			t.Errorf("verification = %+v, %v", v, err)
		}
	})
}

// Ranges that were not read, and objects that are encrypted where nobody looked, are findings of a requirement, and of it alone.
func TestRequireRead(t *testing.T) {
	t.Parallel()
	const hidden = "/a../b"
	elsewhere := evidence.Finding{Problem: "encrypted, not below the prefixes (/registry), and in no number: name every --etcd-prefix with --prefix", Objects: 2}
	unread := evidence.Finding{Problem: "the keys /a../b could not be read, and what lies there may be plain text or under any key"}
	for name, c := range map[string]struct {
		source   evidence.Reading
		accepted []string
		want     []evidence.Finding
	}{
		"all":              {evidence.Reading{}, nil, nil},
		"a range":          {evidence.Reading{Unreadable: []string{hidden}}, nil, []evidence.Finding{unread}},
		"accepted":         {evidence.Reading{Unreadable: []string{hidden}}, []string{hidden}, nil},
		"accepted another": {evidence.Reading{Unreadable: []string{hidden}}, []string{"/a../c"}, []evidence.Finding{unread}},
		"elsewhere":        {evidence.Reading{Prefixes: []string{"/registry"}, Elsewhere: 2}, []string{hidden}, []evidence.Finding{elsewhere}},
	} {
		r := &evidence.Report{Sources: []evidence.Reading{c.source}}
		if r.RequireRead(c.accepted); !slices.Equal(r.Findings, c.want) {
			t.Errorf("%s: %v, want %v", name, r.Findings, c.want)
		}
	}
}
