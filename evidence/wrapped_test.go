package evidence_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// Each DEK that is wanted is found once, in whichever source, and none of older revisions and other providers.
func TestWrapped(t *testing.T) {
	t.Parallel()
	h := newHSM()
	first, second := store(t, h, 50), &memory{}
	first.put("secrets/ns/cbc", []byte("k8s:enc:aescbc:v1:key1:0123456789abcdef"))
	first.put("secrets/ns/broken", []byte("k8s:enc:kms:v2:hsm-kms:\xff"))
	first.putPast("secrets/ns/past", sealed(t, h.dek("ring/x02/new", 8), "secrets/ns/past"))
	second.put("secrets/ns/again", sealed(t, h.dek("ring/x02/new", 1), "secrets/ns/again"))
	asKey := h.dek("ring/x02/new", 1)
	asKey.IsKey = true
	second.put("secrets/ns/as-key", sealed(t, asKey, "secrets/ns/as-key"))
	second.put("secrets/ns/hold", sealed(t, h.dek("ring/x02/new/hold", 3), "secrets/ns/hold"))
	second.objects = append(second.objects, evidence.Object{Key: []byte("/registry/secrets/ns/gone"), Path: []byte("secrets/ns/gone"), Corrects: true, Deleted: true})

	found, err := evidence.Wrapped(t.Context(), []evidence.Source{first, second}, func(keyID string) bool { return strings.HasPrefix(keyID, "ring/x02/new") }, 3)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, dek := range found.DEKs {
		names = append(names, fmt.Sprintf("%s %s", dek.KeyID, dek.Source))
	}
	if want := []string{"ring/x02/new wrapped 0", "ring/x02/new wrapped 1", "ring/x02/new/hold wrapped 3"}; !slices.Equal(names, want) {
		t.Errorf("found %q, want %q", names, want)
	}
	if len(found.Sources) != 2 || len(h.calls) != 0 {
		t.Errorf("%d sources, %d calls", len(found.Sources), len(h.calls))
	}
	_, err = evidence.Wrapped(t.Context(), []evidence.Source{first, second}, func(string) bool { return true }, 4)
	if err == nil || !strings.HasPrefix(hint.Of(err), "run hsm-kms etcd migrate") {
		t.Errorf("more than are possible: %v", err)
	}
}
