package doctor

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/evidence/encconfig"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

// kmsTimeout is kube-apiserver's default for a KMS provider that sets none.
const kmsTimeout = 3 * time.Second

// encryption compares with the EncryptionConfiguration of this node's kube-apiserver.
func (d *doctor) encryption(ctx context.Context) {
	const check = "encryption-config"
	file, info, err := ownedfile.Open(d.EncryptionConfig)
	if err != nil {
		d.failure(check, "", err, "give the file of kube-apiserver's --encryption-provider-config; hsm-kms manifests encryption-config prints one")
		return
	}
	defer file.Close()
	parsed, err := encconfig.Read(file)
	if err != nil {
		d.failure(check, "", fmt.Errorf("reading %s: %w", d.EncryptionConfig, err), "correct the file: hsm-kms manifests encryption-config prints one that fits this configuration")
		return
	}
	keysAreRight := d.localKeys(parsed.Entries)
	switch refused := parsed.Check(); {
	case holdsKeys(parsed) && info.Perm&0o077 != 0:
		d.fail(check, "", fmt.Sprintf("%s holds keys, and mode %04o lets others read them", d.EncryptionConfig, info.Perm), "chmod 0600 "+d.EncryptionConfig)
	case refused != nil && keysAreRight:
		d.failure(check, "", fmt.Errorf("%s: %w", d.EncryptionConfig, refused), "correct the file: kube-apiserver does not start with it")
	default:
		d.pass(check, "", d.EncryptionConfig+" can be read: "+count(len(parsed.Entries), "list")+" of resources")
	}
	d.entries(parsed.Entries)
	d.secretsEntry(parsed.Entries)
	d.stored(ctx, parsed)
}

func holdsKeys(c *encconfig.Config) bool {
	return slices.ContainsFunc(c.Entries, func(e encconfig.Entry) bool {
		return slices.ContainsFunc(e.Providers, func(p encconfig.Provider) bool { return p.HasKeys() })
	})
}

// stored holds the list against what etcd holds, if etcd was named: what no provider of the list reads is lost to an API
// server that has it.
func (d *doctor) stored(ctx context.Context, config *encconfig.Config) {
	const check = "encryption-stored"
	if d.Report == nil || config.Check() != nil {
		return
	}
	report, err := d.Report(ctx)
	if err != nil {
		d.failure(check, "", err, "see --endpoints, --cacert, --cert and --key")
		return
	}
	if lost := config.Unreadable(report); len(lost) > 0 {
		d.fail(check, "", "no provider of the list reads what etcd holds: "+strings.Join(lost, "; "),
			"put the provider, with the keys that it had, back into the list before any kube-apiserver reads it")
		return
	}
	d.pass(check, "", "the list reads all that etcd holds")
}

// localKeys checks the keys that stand in the file, as kube-apiserver does before it accepts any of the file: what manifests
// encryption-config --from prints has a placeholder in their place. It reports whether they are right.
func (d *doctor) localKeys(entries []encconfig.Entry) bool {
	before := len(d.found)
	for _, entry := range entries {
		for _, p := range entry.Providers {
			if p.AESGCM != nil {
				d.keysOf(p, p.AESGCM.Keys, 16, 24, 32)
			}
			if p.AESCBC != nil {
				d.keysOf(p, p.AESCBC.Keys, 16, 24, 32)
			}
			if p.Secretbox != nil {
				d.keysOf(p, p.Secretbox.Keys, 32)
			}
		}
	}
	return len(d.found) == before
}

func (d *doctor) keysOf(p encconfig.Provider, keys []encconfig.Key, sizes ...encconfig.SecretSize) {
	const check, copied = "encryption-keys", "copy all keys of that provider from the EncryptionConfiguration that kube-apiserver has now, in the same order"
	if len(keys) == 0 {
		d.fail(check, "", "provider "+p.String()+" has no keys: kube-apiserver refuses the file", copied)
	}
	for _, key := range keys {
		if !slices.Contains(sizes, key.Secret) {
			d.fail(check, "", fmt.Sprintf("provider %s, key %q: its secret is not the base64 of %s bytes: kube-apiserver refuses the file",
				p.String(), key.Name, strings.Trim(strings.ReplaceAll(fmt.Sprint(sizes), " ", ", "), "[]")), copied)
		}
	}
}

// ours reports whether the provider's endpoint is our socket; links on the way to the folder (/var/run) do not count.
func (d *doctor) ours(p encconfig.Provider) bool {
	if p.KMS == nil {
		return false
	}
	endpoint, err := url.Parse(p.KMS.Endpoint)
	if err != nil || endpoint.Scheme != "unix" {
		return false
	}
	return realPath(endpoint.Path) == realPath(d.cfg.Socket.Path)
}

func realPath(path string) string {
	folder, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return filepath.Clean(path)
	}
	return filepath.Join(folder, filepath.Base(path))
}

// entries checks our provider wherever it is: that it is there, and its fields.
func (d *doctor) entries(entries []encconfig.Entry) {
	var endpoints []string
	found := false
	for _, entry := range entries {
		for _, p := range entry.Providers {
			switch {
			case d.ours(p):
				found = true
				d.ourProvider(p.KMS)
			case p.KMS != nil:
				endpoints = append(endpoints, p.KMS.Endpoint)
			}
		}
	}
	if !found {
		detail := "it has no kms provider"
		if len(endpoints) > 0 {
			detail = "its kms providers are at " + strings.Join(endpoints, ", ") + ", and none at this configuration's socket"
		}
		d.fail("encryption-endpoint", "", detail, "set endpoint: unix://"+d.cfg.Socket.Path+", or socket.path in "+d.ConfigPath)
		return
	}
	d.pass("encryption-endpoint", "", "a kms provider has the endpoint unix://"+d.cfg.Socket.Path)
}

func (d *doctor) ourProvider(k *encconfig.KMS) {
	const check = "encryption-provider"
	timeout := kmsTimeout
	if k.Timeout != "" {
		parsed, err := time.ParseDuration(k.Timeout)
		if err != nil || parsed <= 0 {
			d.fail(check, "", fmt.Sprintf("timeout %q of provider %s is no time", k.Timeout, k.Name), "set timeout: 3s")
			return
		}
		timeout = parsed
	}
	slowest := time.Duration(0)
	for _, t := range d.tokens {
		slowest = max(slowest, t.CallTimeout)
	}
	switch {
	case k.APIVersion != "v2":
		d.fail(check, "", fmt.Sprintf("provider %s has apiVersion %q, which is KMS v1 when it is not given", k.Name, k.APIVersion), "set apiVersion: v2")
	case k.CacheSize != nil:
		d.fail(check, "", fmt.Sprintf("provider %s sets cachesize, which kube-apiserver refuses with apiVersion v2", k.Name), "remove cachesize")
	case timeout <= slowest:
		d.fail(check, "", fmt.Sprintf("kube-apiserver gives up after %s, before a token's callTimeout of %s is over", timeout, slowest),
			"set timeout: 3s, or a callTimeout that is shorter than timeout")
	default:
		d.pass(check, "", fmt.Sprintf("provider %s: apiVersion v2, timeout %s", k.Name, timeout))
	}
}

// secretsEntry looks at the first entry that covers Secrets, which is the one that counts.
func (d *doctor) secretsEntry(entries []encconfig.Entry) {
	at := slices.IndexFunc(entries, func(e encconfig.Entry) bool {
		return slices.ContainsFunc(e.Resources, func(r string) bool { return r == "secrets" || r == "*." || r == "*.*" })
	})
	if at < 0 {
		d.fail("encryption-resources", "", "no entry covers secrets: they are stored in plain text", "add secrets to the resources of the entry")
		return
	}
	d.order(entries[at])
	var covered []string
	for _, e := range entries {
		if slices.ContainsFunc(e.Providers, d.ours) {
			covered = append(covered, e.Resources...)
		}
	}
	if slices.Contains(covered, "secrets") || slices.Contains(covered, "*.") || slices.Contains(covered, "*.*") {
		d.pass("encryption-resources", "", "encrypted are "+strings.Join(covered, ", ")+"; every other resource is stored in plain text")
	}
}

// order checks the providers of an entry: the first encrypts, the others only read.
func (d *doctor) order(e encconfig.Entry) {
	const check = "encryption-order"
	ours := slices.IndexFunc(e.Providers, d.ours)
	identity := slices.IndexFunc(e.Providers, func(p encconfig.Provider) bool { return p.Identity != nil })
	switch {
	case ours < 0:
		if slices.ContainsFunc(e.Providers, func(p encconfig.Provider) bool { return p.KMS != nil }) {
			return // the check of the endpoint says so
		}
		d.fail(check, "", "secrets are covered by an entry without this plugin", "add the kms provider to that entry, as its first")
	case d.Step == 1 && ours == 0:
		d.fail(check, "", "this plugin encrypts secrets already: an API server that does not have it in its list yet cannot read them",
			"at step 1 the provider that was there before comes first: hsm-kms manifests encryption-config with --plaintext or --from prints it")
	case d.Step == 1 && (identity == 0 || identity == len(e.Providers)-1 || identity < 0):
		d.pass(check, "", fmt.Sprintf("step 1: %s still writes secrets, and this plugin reads; go on when every kube-apiserver has such a list", e.Providers[0].String()))
	case identity == 0:
		d.fail(check, "", "identity is the first provider for secrets: they are stored in plain text",
			"put the kms provider first, and identity last; at step 1 of a migration identity first is right: add --step 1")
	case ours > 0:
		d.warn(check, "", fmt.Sprintf("the first provider for secrets is %s: it encrypts, and this plugin only reads", e.Providers[0].String()),
			"put this plugin first once every kube-apiserver has it in its list; at step 1 of a migration this is right: add --step 1")
	case identity >= 0 && identity < len(e.Providers)-1:
		d.fail(check, "", "identity is not the last provider for secrets: what stands after it is never asked", "move identity to the end")
	case identity < 0:
		d.warn(check, "", "identity is not in the list for secrets: an object that is still plain text cannot be read",
			"add identity as the last provider, unless hsm-kms etcd report shows no plain text")
	default:
		d.pass(check, "", "this plugin encrypts secrets; identity is last, for what is still plain text")
	}
}
