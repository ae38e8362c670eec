package audit_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/kmsplugin/audit"
)

func TestFindKey(t *testing.T) {
	t.Parallel()
	const key, other = "ring/x01/0011223344556677", "ring/x02/0011223344556677"
	record := func(keyID string) string {
		return `{"time":"2026-02-03T04:05:06Z","operation":"Encrypt","keyID":"` + keyID + `","code":"OK"}` + "\n"
	}
	for name, test := range map[string]struct {
		files map[string]string
		want  string // empty: not found
	}{
		"no trail":            {nil, ""},
		"in the newest":       {map[string]string{"audit.log": record(other) + record(key)}, "Encrypt at 2026-02-03T04:05:06Z in "},
		"of its hold":         {map[string]string{"audit.log": record(other+"/hold") + record(key+"/hold")}, "Encrypt at 2026-02-03T04:05:06Z in "},
		"in a rotated one":    {map[string]string{"audit.log": record(other), "audit.log.000000000012": record(key)}, ".000000000012"},
		"in one that remains": {map[string]string{"audit.log.000000000012": record(key)}, ".000000000012"},
		"after a torn record": {map[string]string{"audit.log": `{"time":"2026` + "\n" + record(key)}, "Encrypt at"},
		"of another's hold":   {map[string]string{"audit.log": record(other + "/hold")}, ""},
		"another key":         {map[string]string{"audit.log": record(other)}, ""},
		"in other files":      {map[string]string{"audit-etcd-get.log": record(key), "audit.log.old": record(key), "audit.logs": record(key)}, ""},
		"in another field":    {map[string]string{"audit.log": strings.Replace(record(other), `"code"`, `"reason":"`+key+`","code"`, 1)}, ""},
	} {
		dir := t.TempDir()
		for file, text := range test.files {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := audit.FindKey(filepath.Join(dir, "audit.log"), key)
		if err != nil || (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s: %q, %v; want %q", name, got, err, test.want)
		}
	}
	if got, err := audit.FindKey("", key); got != "" || err != nil {
		t.Errorf("no path: %q, %v", got, err)
	}
	long := filepath.Join(t.TempDir(), "audit.log")
	if err := os.WriteFile(long, []byte(strings.Repeat("x", 1<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(t.TempDir(), "audit.log")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{long, fifo, t.TempDir()} {
		if _, err := audit.FindKey(path, key); err == nil {
			t.Errorf("%s: no error", path)
		}
	}
}
