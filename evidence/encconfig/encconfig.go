// Package encconfig reads a kube-apiserver's EncryptionConfiguration and compares it with a report: what should be
// encrypted and is not, and what this API server could not read. Only that belongs here. Keys in the file are passed
// over unread.
package encconfig

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/evidence"
)

// maxSize bounds the file, in bytes.
const maxSize = 1 << 20

// Config is which providers are configured for which resources.
type Config struct {
	entries []entry
}

// entry is one item of resources in the file.
type entry struct {
	resources []string
	providers []string // as stored.Value.Text names them, in order; the first encrypts; "" is identity
}

// The file (k8s.io/apiserver, apis/apiserver/v1 EncryptionConfiguration).
type document struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	Resources  []struct {
		Resources []string   `yaml:"resources"`
		Providers []provider `yaml:"providers"`
	} `yaml:"resources"`
}

type provider struct {
	AESGCM    *keys     `yaml:"aesgcm"`
	AESCBC    *keys     `yaml:"aescbc"`
	Secretbox *keys     `yaml:"secretbox"`
	Identity  *struct{} `yaml:"identity"`
	KMS       *struct {
		APIVersion string    `yaml:"apiVersion"`
		Name       string    `yaml:"name"`
		CacheSize  yaml.Node `yaml:"cachesize"`
		Endpoint   string    `yaml:"endpoint"`
		Timeout    string    `yaml:"timeout"`
	} `yaml:"kms"`
}

type keys struct {
	Keys []struct {
		Name   string    `yaml:"name"`
		Secret discarded `yaml:"secret"`
	} `yaml:"keys"`
}

// discarded is a field whose value is not kept.
type discarded struct{}

// UnmarshalYAML implements yaml.Unmarshaler.
func (discarded) UnmarshalYAML(*yaml.Node) error { return nil }

// Load reads the file at path.
func Load(path string) (*Config, error) {
	file, err := os.Open(path) //nolint:gosec // the operator names it
	if err != nil {
		return nil, fmt.Errorf("reading the EncryptionConfiguration: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("reading the EncryptionConfiguration: %w", err)
	}
	if len(data) > maxSize {
		return nil, fmt.Errorf("reading the EncryptionConfiguration: %s has more than %d bytes", path, maxSize)
	}
	c, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("reading the EncryptionConfiguration %s: %w", path, err)
	}
	return c, nil
}

// Parse reads the text of a file.
func Parse(data []byte) (*Config, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	var d document
	if err := decoder.Decode(&d); err != nil {
		return nil, withoutValues(err)
	}
	if d.Kind != "EncryptionConfiguration" {
		return nil, fmt.Errorf("its kind is %q, not EncryptionConfiguration", d.Kind)
	}
	c := &Config{}
	for i, item := range d.Resources {
		e := entry{resources: item.Resources}
		for j, p := range item.Providers {
			texts, err := p.texts()
			if err != nil {
				return nil, fmt.Errorf("resources[%d].providers[%d]: %w", i, j, err)
			}
			e.providers = append(e.providers, texts...)
		}
		if len(e.resources) == 0 || len(e.providers) == 0 {
			return nil, fmt.Errorf("resources[%d] names no resources or no providers", i)
		}
		if err := c.masked(e.resources); err != nil {
			return nil, fmt.Errorf("resources[%d]: %w", i, err)
		}
		c.entries = append(c.entries, e)
	}
	return c, nil
}

// masked refuses what kube-apiserver refuses: a name that the same list or an earlier entry covers already with a wildcard.
// The earlier entry would win, and the later one would say what nobody does.
func (c *Config) masked(resources []string) error {
	if wide, covered, overlap := stored.Overlap(resources); overlap {
		return fmt.Errorf("%q covers %q in the same list: kube-apiserver refuses this file", wide, covered)
	}
	for _, name := range resources {
		for _, earlier := range c.entries {
			for _, wide := range earlier.resources {
				if stored.Covers(wide, name) {
					return fmt.Errorf("%q is covered by %q of an earlier entry: kube-apiserver refuses this file", name, wide)
				}
			}
		}
	}
	return nil
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

// texts are the prefixes that a provider reads; the first is the one it writes.
func (p *provider) texts() ([]string, error) {
	var all []string
	set := 0
	named := func(kind stored.Provider, k *keys) {
		if k == nil {
			return
		}
		set++
		for _, key := range k.Keys {
			all = append(all, (&stored.Value{Provider: kind, Name: key.Name}).Text())
		}
	}
	named(stored.AESGCM, p.AESGCM)
	named(stored.AESCBC, p.AESCBC)
	named(stored.Secretbox, p.Secretbox)
	if p.Identity != nil {
		set++
		all = append(all, "")
	}
	if p.KMS != nil {
		set++
		kind := stored.KMSv1
		if p.KMS.APIVersion == "v2" {
			kind = stored.KMSv2
		}
		all = append(all, (&stored.Value{Provider: kind, Name: p.KMS.Name}).Text())
	}
	if set != 1 || len(all) == 0 {
		return nil, errors.New("exactly one of aesgcm, aescbc, secretbox, identity and kms must be given, with its keys")
	}
	return all, nil
}

// providers returns those of a resource; nil: none are configured, so it is plain text. What names the resource comes
// before what names its group, and that before "*.*" (encryptionconfig.transformerFromOverrides).
func (c *Config) providers(resource string) []string {
	if resource == "ranges" { // the allocators of a Service's addresses and ports store as Services are stored
		resource = "services"
	}
	for _, specific := range []func(string) bool{
		func(entry string) bool { return !strings.HasPrefix(entry, "*.") },
		func(entry string) bool { return strings.HasPrefix(entry, "*.") && entry != "*.*" },
		func(entry string) bool { return entry == "*.*" },
	} {
		var found []string
		for _, e := range c.entries {
			if slices.ContainsFunc(e.resources, func(name string) bool { return specific(name) && stored.Matches(name, resource) }) {
				found = append(found, e.providers...)
			}
		}
		if found != nil {
			return found
		}
	}
	return nil
}

// Writes returns the provider under which a resource is written, as a report names it; empty: plain text.
func (c *Config) Writes(resource string) string {
	if providers := c.providers(resource); len(providers) > 0 {
		return providers[0]
	}
	return ""
}

// Lost names what c reads and next does not, such as "secrets: kms:v2:vault". Keys that stand in the file count as lost
// whatever next has: their secrets are never read here, so that two keys of one name cannot be told apart.
func (c *Config) Lost(next *Config) []string {
	var lost []string
	for _, e := range c.entries {
		for _, resource := range e.resources {
			reads := next.providers(resource)
			for _, n := range next.entries {
				if slices.Contains(n.resources, resource) { // a pattern is no resource
					reads = append(reads, n.providers...)
				}
			}
			for _, text := range e.providers {
				inFile := text != "" && !strings.HasPrefix(text, "kms:")
				if what := resource + ": " + orIdentity(text); (inFile || !slices.Contains(reads, text)) && !slices.Contains(lost, what) {
					lost = append(lost, what)
				}
			}
		}
	}
	return lost
}

func orIdentity(text string) string {
	if text == "" {
		return "identity"
	}
	return "the provider or key " + text
}

// Compare returns in what the report differs from what this configuration would write, and adds it to the report's
// findings: plain text that should be encrypted, objects under another provider than the first, and objects that an
// API server with this configuration could not read. It looks at the resources that are wanted; nil: at all of them.
func (c *Config) Compare(r *evidence.Report, wanted func(resource string) bool) []evidence.Finding {
	var found []evidence.Finding
	for _, resource := range r.Resources {
		if wanted != nil && !wanted(resource.Resource) {
			continue
		}
		providers := c.providers(resource.Resource)
		if providers == nil {
			providers = []string{""}
		}
		held := slices.Clone(resource.Keys)
		if resource.Plaintext > 0 {
			held = append(held, evidence.Key{Objects: resource.Plaintext})
		}
		for _, key := range held {
			if problem := judge(key.Provider, providers); problem != "" {
				found = append(found, evidence.Finding{Resource: resource.Resource, Problem: problem, Objects: key.Objects})
			}
		}
		if resource.Undecodable > 0 {
			found = append(found, evidence.Finding{Resource: resource.Resource, Problem: "undecodable", Objects: resource.Undecodable})
		}
	}
	r.Add(found)
	return found
}

// Unreadable names what the report has that an API server with this configuration could not read, such as "3 objects of
// secrets under aescbc:v1:key1".
func (c *Config) Unreadable(r *evidence.Report) []string {
	var found []string
	for _, resource := range r.Resources {
		providers := c.providers(resource.Resource)
		if providers == nil {
			providers = []string{""}
		}
		for _, key := range resource.Keys {
			if !slices.Contains(providers, key.Provider) {
				found = append(found, fmt.Sprintf("%d objects of %s under %s", key.Objects, resource.Resource, evidence.Printable(key.Provider)))
			}
		}
		if resource.Plaintext > 0 && !slices.Contains(providers, "") {
			found = append(found, fmt.Sprintf("%d objects of %s in plain text", resource.Plaintext, resource.Resource))
		}
	}
	return found
}

// judge says what is wrong with an object under provider where providers are configured; empty: nothing.
func judge(provider string, providers []string) string {
	name := func(text string) string {
		if text == "" {
			return "plain text"
		}
		return evidence.Printable(text)
	}
	switch {
	case provider == providers[0]:
		return ""
	case !slices.Contains(providers, provider):
		return name(provider) + ", which the configuration cannot read: it writes " + name(providers[0])
	default:
		return name(provider) + ", where the configuration writes " + name(providers[0])
	}
}
