package evidence_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	cbor "k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"
	"k8s.io/apimachinery/pkg/types"

	"github.com/hsm-kms/hsm-kms/evidence"
)

// inProtobuf is an object as the API server stores it.
func inProtobuf(t *testing.T, kind string, object interface{ Marshal() ([]byte, error) }) []byte {
	t.Helper()
	raw, err := object.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	text, err := (&runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: "v1", Kind: kind}, Raw: raw}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return append([]byte("k8s\x00"), text...)
}

func namespace(uid string) *corev1.Namespace {
	return &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: "kube-system", UID: types.UID(uid)}}
}

func lease(at time.Time) *coordinationv1.Lease {
	return &coordinationv1.Lease{
		TypeMeta: metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"},
		Spec:     coordinationv1.LeaseSpec{RenewTime: &metav1.MicroTime{Time: at}},
	}
}

func encoded(t *testing.T, encode func(any) ([]byte, error), object any) []byte {
	t.Helper()
	text, err := encode(object)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// A report says whose cluster it is about, in whatever form its namespace is stored, and how far its clocks are.
func TestReportNamesTheCluster(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)
	const path = "namespaces/kube-system"
	h := newHSM()
	for name, test := range map[string]struct {
		put   func(*memory)
		uids  []string
		clock string
	}{
		"protobuf": {func(m *memory) { m.put(path, inProtobuf(t, "Namespace", namespace("a-b"))) }, []string{"a-b"}, ""},
		"JSON":     {func(m *memory) { m.put(path, encoded(t, json.Marshal, namespace("a-b"))) }, []string{"a-b"}, ""},
		"CBOR": {func(m *memory) {
			m.put(path, append([]byte{0xd9, 0xd9, 0xf7}, encoded(t, cbor.Marshal, namespace("a-b"))...))
		}, []string{"a-b"}, ""},
		"none":       {func(m *memory) { m.put("namespaces/kube-public", inProtobuf(t, "Namespace", namespace("a-b"))) }, []string{}, ""},
		"encrypted":  {func(m *memory) { m.put(path, sealed(t, h.dek("ring/x01/old", 1), path)) }, []string{evidence.UnknownCluster}, ""},
		"damaged":    {func(m *memory) { m.put(path, []byte("k8s\x00\xff")) }, []string{evidence.UnknownCluster}, ""},
		"no UID":     {func(m *memory) { m.put(path, inProtobuf(t, "Namespace", namespace(""))) }, []string{evidence.UnknownCluster}, ""},
		"other kind": {func(m *memory) { m.put(path, inProtobuf(t, "Pod", namespace("a-b"))) }, []string{evidence.UnknownCluster}, ""},
		"the past":   {func(m *memory) { m.putPast(path, inProtobuf(t, "Namespace", namespace("a-b"))) }, []string{}, ""},
		"two": {func(m *memory) {
			m.put(path, inProtobuf(t, "Namespace", namespace("b")))
			m.put(path, inProtobuf(t, "Namespace", namespace("a")))
		}, []string{"a", "b"}, ""},
		"clocks": {func(m *memory) {
			m.put("leases/kube-system/apiserver-1", inProtobuf(t, "Lease", lease(at)))
			m.put("leases/kube-system/apiserver-2", encoded(t, json.Marshal, lease(at.Add(time.Hour))))
			m.put("leases/kube-system/apiserver-3", inProtobuf(t, "Lease", lease(at.Add(time.Minute))))
			m.put("leases/shop/another", inProtobuf(t, "Lease", lease(at.Add(24*time.Hour))))
			m.put("leases/kube-system/empty", inProtobuf(t, "Lease", &coordinationv1.Lease{}))
		}, []string{}, "2026-02-03T05:05:06Z"},
	} {
		m := &memory{}
		test.put(m)
		r := build(t, evidence.ReportOptions{Resources: []string{"secrets"}}, m)
		if got := r.Sources[0]; !slices.Equal(got.ClusterUIDs, test.uids) || got.ClusterUIDs == nil || got.Clock != test.clock {
			t.Errorf("%s: %q at %q, want %q at %q", name, got.ClusterUIDs, got.Clock, test.uids, test.clock)
		}
	}
}

// The longest outage hold that any node publishes is reported; a Lease can say no more than the configuration can.
func TestReportHasTheLongestHold(t *testing.T) {
	t.Parallel()
	const second = "1000000000"
	published := func(text string) *coordinationv1.Lease {
		l := lease(time.Now())
		l.Annotations = map[string]string{evidence.NodeAnnotation: text}
		return l
	}
	for name, test := range map[string]struct {
		said []string
		want string
	}{
		"none":         {[]string{`{"protocol":1}`}, ""},
		"one":          {[]string{`{"protocol":1,"hold":{"limit":3600` + second[1:] + `}}`}, "1h0m0s"},
		"the longest":  {[]string{`{"hold":{"limit":` + second + `}}`, `{"hold":{"limit":2` + second[1:] + `}}`, `{}`}, "2s"},
		"made up":      {[]string{`{"hold":{"limit":9000000000000000000}}`}, "72h0m0s"},
		"negative":     {[]string{`{"hold":{"limit":-5}}`}, ""},
		"no JSON":      {[]string{"hold"}, ""},
		"another type": {[]string{`{"hold":"long"}`}, ""},
	} {
		m := &memory{}
		for i, text := range test.said {
			m.put(fmt.Sprintf("leases/hsm-kms/node-%d", i), inProtobuf(t, "Lease", published(text)))
		}
		m.putPast("leases/hsm-kms/node-x", inProtobuf(t, "Lease", published(`{"hold":{"limit":9000000000000}}`)))
		if got := build(t, evidence.ReportOptions{Resources: []string{"secrets"}}, m).Sources[0].OutageHold; got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}
