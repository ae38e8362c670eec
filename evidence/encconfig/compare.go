package encconfig

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/evidence"
)

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
		for _, e := range c.Entries {
			if slices.ContainsFunc(e.Resources, func(name string) bool { return specific(name) && stored.Matches(name, resource) }) {
				found = append(found, e.texts()...)
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
	for _, e := range c.Entries {
		for _, resource := range e.Resources {
			reads := next.providers(resource)
			for _, n := range next.Entries {
				if slices.Contains(n.Resources, resource) { // a pattern is no resource
					reads = append(reads, n.texts()...)
				}
			}
			for _, text := range e.texts() {
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
