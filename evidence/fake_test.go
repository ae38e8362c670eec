package evidence_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/test/evidence/kubestore"
)

// memory is a source of given objects.
type memory struct {
	objects  []evidence.Object
	prefixes []string // empty: /registry
	err      error
}

func (m *memory) put(path string, value []byte) {
	m.objects = append(m.objects, evidence.Object{Key: []byte("/registry/" + path), Path: []byte(path), Value: value, Revision: int64(len(m.objects) + 1)})
}

func (m *memory) putPast(path string, value []byte) {
	m.put(path, value)
	m.objects[len(m.objects)-1].Past = true
}

func (m *memory) Read(ctx context.Context, _ evidence.Way, each func([]evidence.Object) error) (evidence.Reading, error) {
	for i := 0; i < len(m.objects); i += 100 {
		if err := ctx.Err(); err != nil {
			return evidence.Reading{}, err
		}
		if err := each(append([]evidence.Object{}, m.objects[i:min(i+100, len(m.objects))]...)); err != nil {
			return evidence.Reading{}, err
		}
	}
	return evidence.Reading{Name: "memory", Revision: int64(len(m.objects)), Prefixes: m.read()}, m.err
}

func (m *memory) read() []string {
	if m.prefixes == nil {
		return []string{"/registry"}
	}
	return m.prefixes
}

func (m *memory) Find(_ context.Context, key string) (evidence.Object, error) {
	for _, o := range m.objects {
		if string(o.Key) == key && !o.Past {
			return o, nil
		}
	}
	return evidence.Object{}, evidence.ErrNotFound
}

// hsm is an opener that knows its DEKs; fail says what comes first.
type hsm struct {
	mu     sync.Mutex
	deks   map[string][]byte // by key_id and wrapped form
	calls  map[string]int
	handed [][]byte
	fail   []error
}

func newHSM() *hsm { return &hsm{deks: map[string][]byte{}, calls: map[string]int{}} }

func (h *hsm) Open(_ context.Context, keyID string, wrapped []byte) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	name := keyID + " " + string(wrapped)
	h.calls[name]++
	if len(h.fail) > 0 {
		err := h.fail[0]
		h.fail = h.fail[1:]
		return nil, err
	}
	dek, ok := h.deks[name]
	if !ok {
		return nil, fmt.Errorf("%w: %s", envelope.ErrUnknownKey, keyID)
	}
	out := bytes.Clone(dek)
	h.handed = append(h.handed, out)
	return out, nil
}

// dek makes a DEK that the HSM can open.
func (h *hsm) dek(keyID string, n int) *kubestore.DEK {
	plain := sha256.Sum256(fmt.Appendf(nil, "%s %d", keyID, n))
	d := &kubestore.DEK{Provider: "hsm-kms", KeyID: keyID, Wrapped: fmt.Appendf(nil, "wrapped %d", n), Plain: plain[:]}
	h.deks[keyID+" "+string(d.Wrapped)] = d.Plain
	return d
}

func sealed(t testing.TB, d *kubestore.DEK, path string) []byte {
	t.Helper()
	value, err := d.Value("/registry/"+path, []byte("canary of "+path))
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// store has n secrets under each of two keys, two DEKs each.
func store(t testing.TB, h *hsm, n int) *memory {
	t.Helper()
	m := &memory{}
	for i := range n {
		for _, keyID := range []string{"ring/x01/old", "ring/x02/new"} {
			path := fmt.Sprintf("secrets/ns/%s-%d", strings.ReplaceAll(keyID, "/", "-"), i)
			m.put(path, sealed(t, h.dek(keyID, i%2), path))
		}
	}
	return m
}
