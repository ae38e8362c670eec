//go:build e2e

package e2e

import (
	"strings"
	"testing"
)

// hostile puts things into etcd that no API server writes.
func hostile(t *testing.T, w *rig, args func(string, ...string) []string) {
	t.Log("values that nobody can decode are counted and named; nothing moves the cursor")
	client, err := w.cluster.Etcd()
	must(t, err)
	_, err = client.Put(t.Context(), "/registry/secrets/e2e/evil\x1b[2J", "k8s:enc:kms:v2:\x1b[2J:\x0a\xff")
	must(t, err)
	keyID := "\x1b[31mred\r\n"
	_, err = client.Put(t.Context(), "/registry/secrets/e2e/evil2", "k8s:enc:kms:v2:x:\x0a\x01d\x12"+string(rune(len(keyID)))+keyID+"\x1a\x01w")
	must(t, err)
	table := run(t, w.plugin, args("report")...).want(t, 0)
	if strings.ContainsAny(table.out, "\x1b\r") || !strings.Contains(table.out, `evil\x1b[2J`) || !strings.Contains(table.out, `\x1b[31mred\x0d\x0a`) {
		t.Errorf("the table: %q", table.out)
	}
	verified := run(t, w.plugin, args("verify")...).want(t, 1)
	if strings.ContainsAny(verified.out+verified.errOut, "\x1b\r") {
		t.Errorf("verify: %q", verified.out)
	}
}
