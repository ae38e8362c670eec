package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/test/kube"
	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/tools/kubebin"
)

// What the demo stores. The password is what must never be readable in etcd.
const (
	namespace = "demo"
	name      = "database"
	password  = "correct horse battery staple"
	colour    = "green"
	secretKey = "/registry/secrets/" + namespace + "/" + name
	configKey = "/registry/configmaps/" + namespace + "/" + name
)

// patience is how long the API server, etcd and the plugin may take to be ready.
const patience = time.Minute

// demo is the state of one run; fields are set step by step.
type demo struct {
	bin, dir string
	steps    int
	tools    kubebin.Set
	token    *softhsm.Token
	plugin   *plugin.Plugin
	cluster  *kube.Cluster
	firstID  string // key_id of the first key
	keyID    string // of the current one
}

func (d *demo) step(format string, args ...any) {
	d.steps++
	fmt.Printf("\n%d. %s\n", d.steps, fmt.Sprintf(format, args...))
}

func (d *demo) say(format string, args ...any) {
	fmt.Println("   " + strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "\n   "))
}

// Write lets the tool build tell its progress.
func (d *demo) Write(p []byte) (int, error) {
	d.say("%s", strings.TrimSpace(string(p)))
	return len(p), nil
}

func (d *demo) findTools(ctx context.Context) error {
	d.step("Looking for kube-apiserver and etcd (built from source if there are none: minutes, once)")
	tools, err := kubebin.Find(ctx, d)
	if err != nil {
		return err
	}
	d.tools = tools
	d.say("%s (%s)", tools.Dir, tools.Source)
	return nil
}

func (d *demo) makeToken(ctx context.Context) error {
	d.step("Making an HSM token: SoftHSM, in %s", d.dir)
	token, err := softhsm.New(ctx, filepath.Join(d.dir, "hsm"), "demo", "")
	if err != nil {
		return err
	}
	d.token = token
	d.say("token %q behind %s; its PIN is random and in a file that only you can read", token.Label, token.Module)
	return nil
}

func (d *demo) makeKey(ctx context.Context) error {
	d.step("Making the master key inside the token: hsm-kms keys create")
	p, err := plugin.New(plugin.Options{
		Bin: d.bin, Dir: filepath.Join(d.dir, "plugin"), Token: d.token,
		Extra: "refreshInterval: 1s\nprobeInterval: 1s", // so that the rotation below is a matter of seconds
	})
	if err != nil {
		return err
	}
	d.plugin = p
	key, err := p.CreateKey(ctx)
	if err != nil {
		return err
	}
	if !key.Sensitive || key.Extractable {
		return fmt.Errorf("the key %s is not sensitive, or extractable", key.KeyID)
	}
	d.firstID, d.keyID = key.KeyID, key.KeyID
	list, err := p.Run(ctx, "keys", "list")
	if err != nil {
		return err
	}
	d.say("%s", strings.TrimSpace(string(list)))
	d.say("it is sensitive and not extractable: it can be used, and never be read")
	return nil
}

func (d *demo) startPlugin(ctx context.Context) error {
	d.step("Starting the plugin: hsm-kms serve")
	if err := d.pluginUp(ctx); err != nil {
		return err
	}
	d.say("it listens on %s; hsm-kms status says ok, key_id %s", d.plugin.Socket(), d.keyID)
	return nil
}

// pluginUp starts the plugin and checks that it works under the key that was made.
func (d *demo) pluginUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	status, err := d.plugin.Start(ctx)
	if err != nil {
		return err
	}
	if status.KeyID != d.keyID {
		return fmt.Errorf("the plugin works under key_id %s; the key made was %s", status.KeyID, d.keyID)
	}
	return nil
}

func (d *demo) startKubernetes(ctx context.Context) error {
	d.step("Starting etcd and kube-apiserver, with Secrets encrypted by the plugin")
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cluster, err := kube.Start(ctx, kube.Options{Bin: d.tools, Dir: filepath.Join(d.dir, "kube"), Socket: d.plugin.Socket()})
	if err != nil {
		return err
	}
	d.cluster = cluster
	d.say("ready at %s (etcd: %s)", cluster.URL(), cluster.EtcdURL())
	return cluster.CreateNamespace(ctx, namespace)
}

func (d *demo) writeObjects(ctx context.Context) error {
	d.step("Creating a Secret and a ConfigMap through the API")
	if err := d.cluster.CreateSecret(ctx, namespace, name, map[string][]byte{"password": []byte(password)}); err != nil {
		return err
	}
	if err := d.cluster.CreateConfigMap(ctx, namespace, name, map[string]string{"colour": colour}); err != nil {
		return err
	}
	if err := d.readSecret(ctx); err != nil {
		return err
	}
	config, err := d.cluster.GetConfigMap(ctx, namespace, name)
	if err != nil {
		return err
	}
	d.say("ConfigMap %s/%s as the API gives it: colour = %q", namespace, name, config.Data["colour"])
	return nil
}

func (d *demo) readSecret(ctx context.Context) error {
	secret, err := d.cluster.GetSecret(ctx, namespace, name)
	if err != nil {
		return err
	}
	if got := string(secret.Data["password"]); got != password {
		return fmt.Errorf("the API gives the password as %q; %q was stored", got, password)
	}
	d.say("Secret %s/%s as the API gives it: password = %q", namespace, name, password)
	return nil
}

func (d *demo) readEtcd(ctx context.Context) error {
	d.step("Reading the same two in etcd, as a thief of its disk or backup would")
	secret, err := d.cluster.EtcdGet(ctx, secretKey)
	if err != nil {
		return err
	}
	d.say("%s, %d bytes:", secretKey, len(secret))
	d.say("%s", excerpt(secret, d.keyID))
	prefix := "k8s:enc:kms:v2:" + kube.ProviderName + ":"
	switch {
	case !bytes.HasPrefix(secret, []byte(prefix)):
		return fmt.Errorf("the Secret in etcd does not start with %s", prefix)
	case bytes.Contains(secret, []byte(password)):
		return errors.New("the password is readable in etcd")
	case !bytes.Contains(secret, []byte(d.keyID)):
		return fmt.Errorf("the Secret in etcd does not name key_id %s", d.keyID)
	}
	d.say("it starts with %s and names the key_id; the password is not in it", prefix)
	config, err := d.cluster.EtcdGet(ctx, configKey)
	if err != nil {
		return err
	}
	if !bytes.Contains(config, []byte(colour)) {
		return errors.New("the ConfigMap in etcd is not plain text, although only Secrets are to be encrypted")
	}
	d.say("%s, for comparison, is plain text: %q is readable in it", configKey, colour)
	return nil
}

// excerpt is a hex dump of the head of a value and of the lines with the key_id, with their offsets.
func excerpt(data []byte, keyID string) string {
	const line, head = 16, 4
	lines := strings.Split(strings.TrimSpace(hex.Dump(data)), "\n")
	shown := slices.Clone(lines[:min(head, len(lines))])
	if at := bytes.Index(data, []byte(keyID)); at >= 0 {
		from, to := max(at/line, len(shown)), (at+len(keyID)-1)/line+1
		if from < to {
			shown = append(append(shown, "..."), lines[from:to]...)
		}
	}
	return strings.Join(append(shown, "..."), "\n")
}

func (d *demo) killPlugin(ctx context.Context) error {
	d.step("Killing the plugin (SIGKILL, its socket stays behind) and starting it again")
	d.plugin.Kill()
	if _, err := os.Lstat(d.plugin.Socket()); err != nil {
		return fmt.Errorf("looking for the socket of the killed plugin: %w", err)
	}
	began := time.Now()
	if err := d.pluginUp(ctx); err != nil {
		return err
	}
	d.say("it is back after %d ms, with the same key_id", time.Since(began).Milliseconds())
	return nil
}

func (d *demo) restartAPIServer(ctx context.Context) error {
	d.step("Restarting the API server: its key cache is empty now, so the HSM must open the Secret's key")
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := d.cluster.RestartAPIServer(ctx); err != nil {
		return err
	}
	return d.readSecret(ctx)
}

// stop ends what runs. The API server goes before the plugin that it uses.
func (d *demo) stop() error {
	var err error
	if d.cluster != nil {
		err = d.cluster.Stop()
	}
	if d.plugin != nil {
		err = errors.Join(err, d.plugin.Stop())
	}
	return err
}

func (d *demo) summary() {
	fmt.Printf(`
Done. What was shown:
   - the master key was made in the HSM token and never left it
   - the Secret went through a real API server; etcd holds it encrypted, under key_id
     %s
   - a killed plugin and a restarted API server lost nothing: the Secret was read again
   - the master key was rotated without a restart, and all Secrets were rewritten under key_id
     %s
   - no process and no file is left behind
Next: README.md says how to run it on a control plane; bin/hsm-kms -h lists the commands.
`, d.firstID, d.keyID)
}
