package simulation

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// variant is the outage hold without one of its rules: in file, with is in the place of rule. Its story must fail.
type variant struct {
	name, file, rule, with string
	story                  string
}

var variants = []variant{
	{"hold keys of a node's own", "work.go", "	h.store.putKey(id, day, &key)",
		"	if without(VARIANT) {\n		_, _ = rand.Read(key[:])\n	}\n	h.store.putKey(id, day, &key)", "TestHoldOutage"},
	{"hold keys of one day", "work.go", "	h.store.putKey(id, day, &key)",
		"	if without(VARIANT) && day != envelope.DayOf(h.cfg.Now()) {\n		_, _ = rand.Read(key[:])\n	}\n	h.store.putKey(id, day, &key)", "TestHoldMidnight"},
	{"armed although not all is held", "tend.go", "case c.held < c.listed:", "case c.held < c.listed && !without(VARIANT):", "TestHoldThatIsNotFull"},
	{"ok although a Decrypt failed", "hold.go", "h.machine.short = true", "h.machine.short = !without(VARIANT)", "TestHoldOfOneNode"},
	{"no limit", "machine.go", "return m.ledger.left(boot) == 0 }", "return m.ledger.left(boot) == 0 && !without(VARIANT) }", "TestHoldLimit"},
	{"a limit for each process", "hold.go", "	h.machine.ledger = newLedger(", "	if without(VARIANT) {\n		was = ledgerState{}\n	}\n	h.machine.ledger = newLedger(", "TestHoldLimit"},
	{"keys that are gone stay", "probe.go", "!h.served[id] && (read || !configured)", "!h.served[id] && (read || !configured) && !without(VARIANT)", "TestHoldOfAKeyThatIsGone"},
	{"a refused PIN is an outage", "machine.go", "		return revoked\n", "		if without(VARIANT) {\n			return away\n		}\n		return revoked\n", "TestHoldIsWiped"},
	{"one good probe ends it", "machine.go", "return len(m.good) >= goodProbes", "return len(m.good) >= goodProbes || without(VARIANT)", "TestHoldBrownOut"},
	{"no budget", "hold.go", "	ctx, cancel := context.WithTimeout(ctx, Budget)", "	if without(VARIANT) {\n		return f(ctx)\n	}\n	ctx, cancel := context.WithTimeout(ctx, Budget)", "TestHoldBrownOut"},
	{"requests ask the HSM", "hold.go", "	if h.watching.Load() {\n		if a, done, err := h.sealOnHold", "	if h.watching.Load() && !without(VARIANT) {\n		if a, done, err := h.sealOnHold", "TestHoldBrownOut"},
	{"written under K", "hold.go", "KeyID: key.HoldString(), Bytes: sealed", "KeyID: map[bool]string{false: key.HoldString(), true: key.String()}[without(VARIANT)], Bytes: sealed", "TestHoldOutage"},
	{"Status names K", "hold.go", "h.machine.named = true", "h.machine.named = !without(VARIANT)", "TestHoldOutage"},
	{"a key becomes current", "probe.go", "		report.Key, report.Problem = h.machine.held.key, nil\n", "		report.Problem = nil\n		if !without(VARIANT) {\n			report.Key = h.machine.held.key\n		}\n", "TestHoldAndRotation"},
	{"a drop wipes nothing", "tend.go", "	h.wipe(\"hsm-kms hold drop\")\n	h.store.empty()\n", "	if !without(VARIANT) {\n		h.wipe(\"hsm-kms hold drop\")\n		h.store.empty()\n	}\n", "TestHoldDrop"},
}

// without is the function that variants use.
const without = `package hold

import "os"

func without(rule string) bool { return os.Getenv("SIMULATION_VARIANT") == rule }
`

// TestHoldVariants: the stories can fail. Without each of the hold's rules one of them does.
func TestHoldVariants(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	binary := buildVariants(t)
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(binary, "-test.run", "^"+v.story+"$")
			cmd.Env = append(os.Environ(), "SIMULATION_VARIANT="+v.name)
			out, err := cmd.CombinedOutput()
			if _, failed := errors.AsType[*exec.ExitError](err); !failed || !strings.Contains(string(out), "BROKEN: ") {
				t.Errorf("%s passes without a rule (%v):\n%s", v.story, err, out)
			}
		})
	}
}

// buildVariants builds these tests with a hold of which each rule can be switched off.
func buildVariants(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	package_, err := filepath.Abs("../../kmsplugin/hold")
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{"without.go": without}
	for _, v := range variants {
		if texts[v.file] == "" {
			text, err := os.ReadFile(filepath.Join(package_, v.file))
			if err != nil {
				t.Fatal(err)
			}
			texts[v.file] = string(text)
		}
		if n := strings.Count(texts[v.file], v.rule); n != 1 {
			t.Fatalf("%s: %s has %d times %q", v.name, v.file, n, v.rule)
		}
		texts[v.file] = strings.Replace(texts[v.file], v.rule, strings.ReplaceAll(v.with, "VARIANT", `"`+v.name+`"`), 1)
	}
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	for name, text := range texts {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		overlay.Replace[filepath.Join(package_, name)] = path
	}
	list, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	path, binary := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "variants.test")
	if err := os.WriteFile(path, list, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "test", "-c", "-overlay", path, "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("building the variants: %v\n%s", err, out)
	}
	return binary
}
