//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/tokens"
)

// vendor runs pkcs11-tool, which stands for the tools of all vendors.
func (a *alone) vendor(t *testing.T, args ...string) {
	t.Helper()
	pin, err := a.token.PIN()
	if err != nil {
		t.Fatal(err)
	}
	args = append([]string{"--module", a.token.Module, "--token-label", a.token.Label, "--login", "--pin", "env:PIN"}, args...)
	cmd := exec.CommandContext(t.Context(), "pkcs11-tool", args...)
	cmd.Env = append(os.Environ(), append(a.token.Env(), "PIN="+pin)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("pkcs11-tool %v: %v: %s (package opensc has it)", args, err, out)
	}
}

// ceremony makes a key of the ring with the vendor's tool; id is hex.
func (a *alone) ceremony(t *testing.T, id string) {
	t.Helper()
	a.vendor(t, "--keygen", "--key-type", "AES:32", "--label", "kube-secrets", "--id", id, "--private", "--sensitive")
}

// added is the only key of the ring that is not among those known before.
func (a *alone) added(t *testing.T, before map[string]plugin.Key) plugin.Key {
	t.Helper()
	var found []plugin.Key
	for id, key := range a.list(t) {
		if before[id].KeyID == "" {
			found = append(found, key)
		}
	}
	if len(found) != 1 {
		t.Fatalf("new keys: %+v, want one", found)
	}
	return found[0]
}

// printID asks for the label and CKA_ID of the next key.
func (a *alone) printID(t *testing.T, activateIn time.Duration) (label, id, text string) {
	t.Helper()
	out, err := a.plugin.Run(t.Context(), "keys", "rotate", "--print-id", "--activate-in", activateIn.String(), "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var said struct{ Label, ID, IDText string }
	if err := json.Unmarshal(out, &said); err != nil || said.Label != "kube-secrets" || said.ID == "" {
		t.Fatalf("keys rotate --print-id: %v: %s", err, out)
	}
	return said.Label, said.ID, said.IDText
}

// A key from a ceremony serves; keys rotate follows it; and with --print-id the vendor's tool makes the one after.
func TestRotationOfAKeyMadeElsewhere(t *testing.T) {
	t.Parallel()
	a := newAlone(t, "")
	a.ceremony(t, "0badcafe")
	made := a.added(t, nil)
	if made.State != "current" || made.Activates != nil || made.ID != "0badcafe" || !made.NeverExtractable || !made.Local {
		t.Errorf("the key of the ceremony: %+v", made)
	}
	a.start(t, made.KeyID)
	client := a.dial(t)
	sealed := []*kmsapi.EncryptResponse{a.encrypt(t, client)}

	ours, err := a.plugin.RotateKey(t.Context(), 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	a.waitStatus(t, ours.KeyID, "ok")
	sealed = append(sealed, a.encrypt(t, client))

	before := a.list(t)
	_, id, _ := a.printID(t, 3*time.Second)
	a.ceremony(t, id)
	next := a.added(t, before)
	if next.State != "pending" || next.ID != id || next.Activates == nil {
		t.Errorf("the vendor's next key: %+v, want it pending with CKA_ID %s", next, id)
	}
	a.waitStatus(t, next.KeyID, "ok")
	sealed = append(sealed, a.encrypt(t, client))
	a.opens(t, client, sealed...)
	for i, want := range []string{made.KeyID, ours.KeyID, next.KeyID} {
		if got := sealed[i].GetKeyId(); got != want {
			t.Errorf("DEK %d was sealed under %s, want %s", i, got, want)
		}
	}
	checkNoAlarm(t, a.plugin, nil)
}

// Two keys that could be meant, whether made elsewhere or with one CKA_ID, are a fault that names both, live and at
// start. What is sealed is opened all the same, Status goes on under the proven key or is an error, and it is over when a
// person has repaired it.
func TestRotationConflictingKeys(t *testing.T) {
	t.Parallel()
	for name, conflicting := range map[string]string{"another key made elsewhere": "0c0d", "one CKA_ID twice": "0a0b"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAlone(t, "")
			a.ceremony(t, "0a0b")
			known := a.list(t)
			made := a.added(t, nil)
			a.start(t, made.KeyID)
			client := a.dial(t)
			sealed := a.encrypt(t, client)

			a.ceremony(t, conflicting)
			other := a.added(t, known)
			a.checkAmbiguous(t, client, sealed, made, other)

			t.Log("at start, with what it knew: under the proven key still")
			a.stopPlugin(t)
			if _, err := a.plugin.Serve(); err != nil {
				t.Fatal(err)
			}
			a.checkAmbiguous(t, client, sealed, made, other)

			t.Log("at start, knowing nothing: an error, and what is sealed is opened")
			a.stopPlugin(t)
			if err := os.Remove(filepath.Join(a.dir, "plugin/state/proven.json")); err != nil {
				t.Fatal(err)
			}
			if _, err := a.plugin.Serve(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "status is an error", func() (bool, string) {
				status, _ := a.plugin.Status(t.Context())
				return status.KeyID == "" && strings.Contains(status.Error, "ambiguous"), status.KeyID + status.Healthz + status.Error
			})
			a.opens(t, client, sealed)

			t.Log("repaired: a rotation goes past both")
			next, err := a.plugin.RotateKey(t.Context(), time.Second)
			if err != nil {
				t.Fatalf("keys rotate on an ambiguous ring: %v", err)
			}
			a.waitStatus(t, next.KeyID, "ok")
			a.opens(t, client, sealed, a.encrypt(t, client))
		})
	}
}

// checkAmbiguous checks that Status goes on under the proven key and is not ok, that log and keys list name both keys,
// that none of them is called pending, and that what was sealed is opened.
func (a *alone) checkAmbiguous(t *testing.T, client kmsapi.KeyManagementServiceClient, sealed *kmsapi.EncryptResponse, proven, conflicting plugin.Key) {
	t.Helper()
	a.waitStatus(t, proven.KeyID, "the key ring is ambiguous")
	a.opens(t, client, sealed)
	if enc := a.encrypt(t, client); enc.GetKeyId() != proven.KeyID {
		t.Errorf("Encrypt seals under %s, want the proven key %s", enc.GetKeyId(), proven.KeyID)
	}
	told := false
	for _, line := range readLog(t, a.plugin) {
		told = told || line.Level == "ERROR" && strings.Contains(line.text, proven.KeyID) && strings.Contains(line.text, conflicting.KeyID) && line.Hint != ""
	}
	if !told {
		t.Error("no error in the log names both keys and says what to do")
	}
	_, err := a.plugin.Run(t.Context(), "keys", "list")
	if err == nil || !strings.Contains(err.Error(), proven.KeyID) || !strings.Contains(err.Error(), conflicting.KeyID) || !strings.Contains(err.Error(), "exit code 1") {
		t.Errorf("keys list: %v; want exit code 1 and both key_ids", err)
	}
	if state := a.list(t)[conflicting.KeyID].State; state != "retained" {
		t.Errorf("the conflicting key is called %s", state)
	}
}

// The vendor's tool was run twice for the next version: neither becomes current, the one before goes on.
func TestRotationDuplicatesOfTheNext(t *testing.T) {
	t.Parallel()
	a := newAlone(t, "")
	current, err := a.plugin.CreateKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a.start(t, current.KeyID)
	client := a.dial(t)
	sealed := a.encrypt(t, client)
	_, id, _ := a.printID(t, 2*time.Second)
	a.ceremony(t, id)
	a.ceremony(t, id)
	a.waitStatus(t, current.KeyID, "the key ring is ambiguous")
	a.opens(t, client, sealed, a.encrypt(t, client))

	t.Log("one is removed with the vendor's tool: the other takes its place")
	a.vendor(t, "--delete-object", "--type", "secrkey", "--id", id)
	left := a.added(t, map[string]plugin.Key{current.KeyID: current})
	a.waitStatus(t, left.KeyID, "ok")
	a.opens(t, client, sealed, a.encrypt(t, client))
}

// A TPM 2.0 makes its keys with tpm2_ptool alone. The module shows a new key to processes that start after it was made.
func TestRotationOnATPM(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	tpm := tokens.TPM(t)
	bin, err := plugin.FindPrograms()
	if err != nil {
		t.Fatal(err)
	}
	dir := shortDir(t)
	token := &softhsm.Token{Dir: dir, Module: tpm.Module, Label: tpm.Label, PINFile: tpm.PINFile}
	a := &alone{rig: &rig{dir: dir}, token: token}
	a.plugin, err = plugin.New(plugin.Options{Bin: bin.HSMKMS, Dir: filepath.Join(dir, "plugin"), Token: token, Extra: quick + "\nprofile: " + tpm.Profile})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.stopPlugin(t) })
	if err := tpm.MakeKey(t.Context(), "kube-secrets", []byte("0123456789abcdef")); err != nil {
		t.Fatal(err)
	}
	made := a.added(t, nil)
	a.start(t, made.KeyID)
	client := a.dial(t)
	sealed := a.encrypt(t, client)

	a.stopPlugin(t) // one at a time: without a resource manager the TPM has room for one, and each flushes what the other loaded
	label, _, text := a.printID(t, 20*time.Second)
	book := readRunbook(t)
	const heading = "With the vendor's tool"
	book.blocks[heading] = slices.DeleteFunc(book.blocks[heading], func(block string) bool { return !strings.HasPrefix(block, tpmBlock) })
	(&station{alone: a}).run(t, book.next(t, heading), []string{"LABEL=" + label, "TEXT=" + text})
	next := a.added(t, map[string]plugin.Key{made.KeyID: made})
	if next.Activates == nil {
		t.Errorf("the next key: %+v; want an activation time", next)
	}
	if _, err := a.plugin.Serve(); err != nil {
		t.Fatal(err)
	}
	a.waitStatus(t, next.KeyID, "ok")
	a.opens(t, client, sealed, a.encrypt(t, client))
}
