//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// blocks are the sh blocks of a document, or of some of its sections.
func blocks(t *testing.T, path string, sections ...string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	text := string(data)
	if len(sections) > 0 {
		text = ""
		for _, name := range sections {
			_, section, found := strings.Cut(string(data), "\n## "+name+"\n")
			if !found {
				t.Fatalf("%s has no section %s", path, name)
			}
			section, _, _ = strings.Cut(section, "\n## ")
			text += section
		}
	}
	var found []string
	for _, match := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(text, -1) {
		found = append(found, match[1])
	}
	if len(found) == 0 {
		t.Fatalf("%s has no commands", path)
	}
	return found
}

// Every command of the documents runs as it stands there, in a folder with the files that they name. What an operator's
// machine would have at its default place (configuration, etcd's and the API server's addresses) is added to commands that name none.
func TestDocuments(t *testing.T) {
	t.Parallel()
	w := newRig(t)
	if _, err := os.Stat(w.bin.Kube.Path("etcdctl")); err != nil {
		t.Skip("the documents use etcdctl, and these programs come without it")
	}
	w.under(t, provider("kms", map[string]any{"apiVersion": "v2", "name": "hsm-kms", "endpoint": "unix://" + w.plugin.Socket()}), provider("identity", map[string]any{}))
	must(t, w.cluster.CreateNamespace(t.Context(), namespace))
	w.customResource(t)
	w.secret(t, "one")
	w.widget(t, "one")
	token, err := w.token.CopyTo(filepath.Join(w.dir, "restored-hsm"))
	must(t, err)
	folder := filepath.Join(w.dir, "docs")
	must(t, os.MkdirAll(filepath.Join(folder, "bin"), 0o700))
	for name, target := range map[string]string{
		"encryption.yaml": w.cluster.EncryptionConfig(), "restored.yaml": w.pluginOn(t, "restored", token).Config(),
		"bin/etcdctl": w.bin.Kube.Path("etcdctl"),
	} {
		must(t, os.Symlink(target, filepath.Join(folder, name)))
	}
	wrapper := fmt.Sprintf(`#!/bin/sh
case "$*" in *restored.yaml*) export SOFTHSM2_CONF=%s;; *--config*) ;; *) set -- "$@" --config %s;; esac
case "$*" in *--snapshot*) ;; etcd*) set -- "$@" --endpoints %s;; esac
case "$*" in "etcd migrate"*) set -- "$@" --server %s;; esac
exec %s "$@"
`, token.Conf(), w.plugin.Config(), w.cluster.EtcdURL(), w.cluster.URL(), w.bin.HSMKMS)
	must(t, os.WriteFile(filepath.Join(folder, "bin/hsm-kms"), []byte(wrapper), 0o700))
	words := strings.NewReplacer("KEYID", w.keyID, "NAMESPACE", namespace, "NAME", "one")
	kubeconfig := w.migrator(t).kubeconfig
	for document, sections := range map[string][]string{
		"evidence.md": nil, "restore.md": nil, "migration.md": {"What does each API server write?", "Rewrite"},
	} {
		for _, block := range blocks(t, "../../../docs/"+document, sections...) {
			cmd := exec.CommandContext(t.Context(), "sh", "-ec", words.Replace(block))
			cmd.Dir = folder
			cmd.Env = append(os.Environ(), "PATH="+filepath.Join(folder, "bin")+":"+os.Getenv("PATH"), "ETCDCTL_ENDPOINTS="+w.cluster.EtcdURL(), "KUBECONFIG="+kubeconfig)
			cmd.Env = append(cmd.Env, w.token.Env()...)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %s: %v\n%s", document, block, err, out)
			}
		}
	}
	if text, err := os.ReadFile(filepath.Join(folder, "secret.yaml")); err != nil || !strings.Contains(string(text), "name: one") {
		t.Errorf("the recovered object: %q, %v", text, err)
	}
}
