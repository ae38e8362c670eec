package config_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
)

// The configurations in testdata/v0 are those of the documents and tests before each token had a worker process. They are
// read as they are, with a warning for what has no effect any more.
func TestOldConfigurations(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/v0/*.yaml")
	if err != nil || len(files) < 7 {
		t.Fatalf("%q, %v", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := config.Parse(file, text)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		for _, token := range cfg.Tokens {
			if token.Login != config.LoginPIN || token.EmptyPIN || token.ConnectTimeout == 0 {
				t.Errorf("%s: token %+v", file, token)
			}
		}
		warned := slices.ContainsFunc(cfg.Warnings(), func(w string) bool { return strings.HasPrefix(w, "hangExitAfter has no effect") })
		if warned != strings.Contains(string(text), "hangExitAfter") {
			t.Errorf("%s: warnings %q", file, cfg.Warnings())
		}
	}
}
