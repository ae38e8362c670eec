package config_test

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// FuzzLoad: no input makes Parse panic; what it refuses comes with a hint, and nothing in the message can break out of
// a log line; what it accepts is the same after being written and read again.
func FuzzLoad(f *testing.F) {
	for _, name := range []string{"testdata/defaults.yaml", "testdata/full.yaml"} {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(strings.NewReplacer("module: ", "uri: pkcs11:token=k8s?module-path=", "    label: k8s\n", "").Replace(minimal)))
	for _, text := range []string{minimal, "", "a", "&a [*a]", "{}", "tokens: [{}, 1, ~]", minimal + "http: {address: ''}\n<<: {a: b}\n"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := config.Parse("c.yaml", data)
		if err != nil {
			if cfg != nil || hint.Of(err) == "" || !strings.Contains(err.Error(), "(hint: ") {
				t.Fatalf("refused without a hint: %v", err)
			}
			return
		}
		cfg.Warnings()
		text, err := yaml.Marshal(cfg)
		if err != nil {
			t.Fatalf("writing %+v: %v", cfg, err)
		}
		again, err := config.Parse("c.yaml", text)
		if err != nil {
			t.Fatalf("reading what was written: %v\n%s", err, text)
		}
		if diff := cmp.Diff(cfg, again); diff != "" {
			t.Fatalf("written and read again (-first +second):\n%s", diff)
		}
	})
}
