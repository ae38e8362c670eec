// Package encconfig reads a kube-apiserver's EncryptionConfiguration and compares it with a report: what should be
// encrypted and is not, and what this API server could not read. It depends on envelope/stored and evidence. Of a key that
// stands in the file it keeps the name and the length. A Config is not changed once it is read, and may be used by any
// number of goroutines.
package encconfig

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
)

// maxSize bounds the file, in bytes.
const maxSize = 1 << 20

// Config is the file (k8s.io/apiserver, apis/apiserver/v1 EncryptionConfiguration).
type Config struct {
	APIVersion string  `yaml:"apiVersion"`
	Kind       string  `yaml:"kind"`
	Entries    []Entry `yaml:"resources"`
}

// Entry is one item of resources: the first provider writes, all of them read.
type Entry struct {
	Resources []string   `yaml:"resources"`
	Providers []Provider `yaml:"providers"`
}

// Provider is one item of providers. kube-apiserver requires that exactly one field is set.
type Provider struct {
	AESGCM    *Keys     `yaml:"aesgcm"`
	AESCBC    *Keys     `yaml:"aescbc"`
	Secretbox *Keys     `yaml:"secretbox"`
	Identity  *struct{} `yaml:"identity"`
	KMS       *KMS      `yaml:"kms"`
}

// Keys stand in the file itself.
type Keys struct {
	Keys []Key `yaml:"keys"`
}

// Key is one of them, without its secret.
type Key struct {
	Name   string     `yaml:"name"`
	Secret SecretSize `yaml:"secret"`
}

// SecretSize is how many bytes the base64 of a secret stands for, -1 if it is no base64.
type SecretSize int

// UnmarshalYAML implements yaml.Unmarshaler.
func (s *SecretSize) UnmarshalYAML(node *yaml.Node) error {
	secret, err := base64.StdEncoding.DecodeString(node.Value)
	defer clear(secret)
	*s = SecretSize(len(secret))
	if err != nil {
		*s = -1
	}
	return nil
}

// KMS is a plugin.
type KMS struct {
	APIVersion string `yaml:"apiVersion"` // "v2"; anything else is KMS v1
	Name       string `yaml:"name"`
	CacheSize  *int   `yaml:"cachesize"`
	Endpoint   string `yaml:"endpoint"`
	Timeout    string `yaml:"timeout"`
}

// Load reads and checks the file at path.
func Load(path string) (*Config, error) {
	file, err := os.Open(path) //nolint:gosec // the operator names it
	if err != nil {
		return nil, fmt.Errorf("reading the EncryptionConfiguration: %w", err)
	}
	defer file.Close()
	c, err := Read(file)
	if err == nil {
		err = c.Check()
	}
	if err != nil {
		return nil, fmt.Errorf("reading the EncryptionConfiguration %s: %w", path, err)
	}
	return c, nil
}

// Parse reads and checks the text of a file.
func Parse(data []byte) (*Config, error) {
	c, err := Read(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return c, c.Check()
}

// Read reads a file, of at most 1 MiB, that has the form of an EncryptionConfiguration. Check reports whether kube-apiserver
// would accept what it says.
func Read(r io.Reader) (*Config, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxSize+1))
	if err != nil {
		return nil, err
	}
	defer clear(data) // it may hold keys
	if len(data) > maxSize {
		return nil, fmt.Errorf("it has more than %d bytes", maxSize)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	c := &Config{}
	if err := decoder.Decode(c); err != nil {
		return nil, withoutValues(err)
	}
	if c.APIVersion != "apiserver.config.k8s.io/v1" || c.Kind != "EncryptionConfiguration" {
		return nil, fmt.Errorf("it is %q, kind %q, and not apiserver.config.k8s.io/v1, kind EncryptionConfiguration", c.APIVersion, c.Kind)
	}
	if len(c.Entries) == 0 {
		return nil, errors.New("it has no entry in resources")
	}
	return c, nil
}

// Check returns what makes kube-apiserver refuse the file: an entry without resources or providers, a provider that is none
// or has no keys, or a resource that an earlier name covers.
func (c *Config) Check() error {
	for i := range c.Entries {
		e := &c.Entries[i]
		for j := range e.Providers {
			if err := e.Providers[j].check(); err != nil {
				return fmt.Errorf("resources[%d].providers[%d]: %w", i, j, err)
			}
		}
		if len(e.Resources) == 0 || len(e.Providers) == 0 {
			return fmt.Errorf("resources[%d] names no resources or no providers", i)
		}
		if err := masked(c.Entries[:i], e.Resources); err != nil {
			return fmt.Errorf("resources[%d]: %w", i, err)
		}
	}
	return nil
}

// masked refuses what kube-apiserver refuses: a name that the same list or an earlier entry covers already with a wildcard.
// The earlier entry would win, and the later one would say what nobody does.
func masked(earlier []Entry, resources []string) error {
	if wide, covered, overlap := stored.Overlap(resources); overlap {
		return fmt.Errorf("%q covers %q in the same list: kube-apiserver refuses this file", wide, covered)
	}
	for _, name := range resources {
		for _, e := range earlier {
			for _, wide := range e.Resources {
				if stored.Covers(wide, name) {
					return fmt.Errorf("%q is covered by %q of an earlier entry: kube-apiserver refuses this file", name, wide)
				}
			}
		}
	}
	return nil
}

// check returns an error unless exactly one kind of provider is given.
func (p *Provider) check() error {
	set := 0
	for _, given := range []bool{p.AESGCM != nil, p.AESCBC != nil, p.Secretbox != nil, p.Identity != nil, p.KMS != nil} {
		if given {
			set++
		}
	}
	if set != 1 || len(p.texts()) == 0 {
		return errors.New("exactly one of aesgcm, aescbc, secretbox, identity and kms must be given, with its keys")
	}
	return nil
}

// String is what the file calls the provider.
func (p *Provider) String() string {
	switch {
	case p.KMS != nil:
		return "kms " + p.KMS.Name
	case p.AESGCM != nil:
		return "aesgcm"
	case p.AESCBC != nil:
		return "aescbc"
	case p.Secretbox != nil:
		return "secretbox"
	case p.Identity != nil:
		return "identity"
	}
	return "an empty provider"
}

// HasKeys reports whether keys stand in the file.
func (p *Provider) HasKeys() bool { return p.AESGCM != nil || p.AESCBC != nil || p.Secretbox != nil }

// texts are what the provider reads, as stored.Value.Text names it; the first is what it writes. "" is plain text.
func (p *Provider) texts() []string {
	var all []string
	for _, local := range []struct {
		kind stored.Provider
		keys *Keys
	}{{stored.AESGCM, p.AESGCM}, {stored.AESCBC, p.AESCBC}, {stored.Secretbox, p.Secretbox}} {
		if local.keys == nil {
			continue
		}
		for _, key := range local.keys.Keys {
			all = append(all, (&stored.Value{Provider: local.kind, Name: key.Name}).Text())
		}
	}
	if p.Identity != nil {
		all = append(all, "")
	}
	if p.KMS != nil {
		kind := stored.KMSv1
		if p.KMS.APIVersion == "v2" {
			kind = stored.KMSv2
		}
		all = append(all, (&stored.Value{Provider: kind, Name: p.KMS.Name}).Text())
	}
	return all
}

// texts are those of all providers of the entry, in order.
func (e *Entry) texts() []string {
	var all []string
	for i := range e.Providers {
		all = append(all, e.Providers[i].texts()...)
	}
	return all
}

// withoutValues cuts a YAML error to the lines that it is about: its text can quote the file, which holds keys.
func withoutValues(err error) error {
	if typeError, ok := errors.AsType[*yaml.TypeError](err); ok {
		var lines []string
		for _, text := range typeError.Errors {
			if field := strings.Index(text, " not found in type"); field >= 0 { // an unknown field: its name is no value
				lines = append(lines, text[:field]+" is not known")
				continue
			}
			line, _, _ := strings.Cut(text, ":")
			lines = append(lines, line+": not of the form that it must have")
		}
		return errors.New(strings.Join(lines, "; "))
	}
	return err
}
