package hint_test

import (
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

func TestNearest(t *testing.T) {
	t.Parallel()
	known := []string{"configmaps", "secrets", "services", "deployments.apps", strings.Repeat("x", 1000)}
	for name, want := range map[string]string{
		"secrets": "secrets", "secret": "secrets", "sercets": "secrets", "seecrets": "secrets", "deployment.app": "deployments.apps",
		"widgets": "", "": "", "s": "", "sec": "", strings.Repeat("x", 1000): "",
	} {
		if got := hint.Nearest(name, known); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", name, got, want)
		}
	}
}
