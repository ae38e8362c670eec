package evidence

import (
	"slices"
	"strings"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// Finding is one way in which a report does not meet what was required of it.
type Finding struct {
	Resource string `json:"resource"` // empty: it is about the whole
	Problem  string `json:"problem"`
	Objects  int64  `json:"objects"` // how many have it
}

// Required is what is demanded of every object of some resources. Field names are a contract.
type Required struct {
	KeyID     string   `json:"keyID"`
	Resources []string `json:"resources"` // as an EncryptionConfiguration names them, wildcards included
	// Current: KeyID was asked of the ring, which has it as its current key. Otherwise somebody typed it.
	Current bool `json:"current"`
	// Newer are the keys of the ring that are newer than its current one.
	Newer []NewerKey `json:"newer"`
	// Cluster is the UID of the cluster that the ring is bound to; empty: none, or it was not asked.
	Cluster string `json:"cluster,omitempty"`
}

// NewerKey is a key of the ring that is to become current.
type NewerKey struct {
	KeyID string `json:"keyID"`
	// State is "pending": its time has not come; or "deferred": it has, and a token does not have the key.
	State string `json:"state"`
	From  string `json:"from"` // RFC 3339: when it becomes current, or was to
}

// RequireKey demands that every object of the resources is under the key and nothing else. It returns what is not, and adds
// it to the report's findings. Only what was seen can meet it: a name that no object has is a finding, and so is a
// selection without any object, so that a mistake in a name or key_id does not look like success.
func (r *Report) RequireKey(required Required, allowEmpty bool) []Finding {
	required.Newer = append([]NewerKey{}, required.Newer...)
	r.Required = &required
	found := r.ofAnotherCluster(required.Cluster)
	var objects, under int64
	for _, resource := range r.Resources {
		for _, key := range resource.Keys {
			if key.KeyID == required.KeyID {
				under += key.Objects
			}
		}
		if !slices.ContainsFunc(required.Resources, func(entry string) bool { return stored.Matches(entry, resource.Resource) }) {
			continue
		}
		objects += resource.Total
		found = append(found, resource.notUnder(required.KeyID)...)
	}
	missing := absent(required.Resources, r.present())
	switch {
	case !allowEmpty && r.Objects == 0:
		found = append(found, nothing())
	case !allowEmpty && len(missing) > 0:
		found = append(found, noObject(missing)...)
	case !allowEmpty && objects == 0:
		found = append(found, Finding{Problem: "no object at all is of " + strings.Join(required.Resources, ", ")})
	case under == 0 && objects == 0 && !required.Current:
		found = append(found, Finding{Problem: "no object at all is under " + Printable(required.KeyID) + ", so nothing shows that there is such a key"})
	}
	r.Add(found)
	return found
}

// RequireRead demands that all of each source was read, save the accepted ranges, which are recorded, and that everything
// encrypted in it is below its prefixes. What lies in another range may be anything, and what lies elsewhere is in no number.
func (r *Report) RequireRead(accepted []string) {
	for _, source := range r.Sources {
		for _, hidden := range source.Unreadable {
			switch {
			case !slices.Contains(accepted, hidden):
				r.Add([]Finding{{Problem: "the keys " + hidden + " could not be read, and what lies there may be plain text or under any key"}})
			case !slices.Contains(r.Accepted, hidden):
				r.Accepted = append(r.Accepted, hidden)
			}
		}
		if source.Elsewhere > 0 {
			r.Add([]Finding{{Problem: "encrypted, not below the prefixes (" + Printable(strings.Join(source.Prefixes, ", ")) + "), and in no number: name every --etcd-prefix with --prefix", Objects: source.Elsewhere}})
		}
	}
}

// Add adds findings, each once.
func (r *Report) Add(findings []Finding) {
	for _, f := range findings {
		if !slices.Contains(r.Findings, f) {
			r.Findings = append(r.Findings, f)
		}
	}
}

func (r *Report) present() []string {
	var names []string
	for _, resource := range r.Resources {
		names = append(names, resource.Resource)
	}
	return names
}

// absent are the entries that name one resource each and are not among those present. A wildcard demands nothing.
func absent(entries, present []string) []string {
	return slices.DeleteFunc(slices.Clone(entries), func(entry string) bool {
		return stored.IsWildcard(entry) || slices.ContainsFunc(present, func(resource string) bool { return stored.Matches(entry, resource) })
	})
}

func noObject(names []string) []Finding {
	var found []Finding
	for _, name := range names {
		problem := "there is none"
		if meant := Meant(name, stored.Kubernetes().Names()); meant != "" {
			problem += "; did you mean " + meant + "?"
		}
		found = append(found, Finding{Resource: name, Problem: problem})
	}
	return found
}

// Meant returns the known resource that a name most likely stands for, or "": the same with its group, or a similar one.
func Meant(name string, known []string) string {
	for _, k := range known {
		if strings.HasPrefix(k, name+".") {
			return k
		}
	}
	return hint.Nearest(name, slices.DeleteFunc(slices.Clone(known), func(k string) bool { return k == name }))
}

// CheckResources reports the first entry that cannot name a resource, with a hint.
func CheckResources(entries []string) error {
	for _, entry := range entries {
		if err := stored.CheckEntry(entry); err != nil {
			advice := "name resources as an EncryptionConfiguration does: secrets,deployments.apps,*.example.com"
			name := strings.ToLower(strings.TrimSpace(entry[strings.LastIndexByte(entry, '/')+1:]))
			if nearest := hint.Nearest(name, stored.Kubernetes().Names()); nearest != "" {
				advice = "did you mean " + nearest + "?"
			}
			return hint.Wrap(err, advice)
		}
	}
	return nil
}

// missing is about a report of which no key is required: the prefixes and the named resources without an object.
func (t *tally) missing(r *Report, resources []string) []Finding {
	if len(t.prefixes) == 0 {
		return []Finding{nothing()}
	}
	var found []Finding
	var prefixes []string
	for _, source := range r.Sources {
		for _, prefix := range source.Prefixes {
			if !t.prefixes[prefix] && !slices.Contains(prefixes, prefix) {
				prefixes = append(prefixes, prefix)
				found = append(found, Finding{Problem: "no object at all is below " + Printable(prefix) + ": is the prefix right?"})
			}
		}
	}
	return append(found, noObject(absent(resources, r.present()))...)
}

// nothing is the finding of a report that saw no object at all.
func nothing() Finding {
	return Finding{Problem: "no object at all was found: is the prefix right?"}
}

// notUnder are the findings of one resource.
func (r *Resource) notUnder(keyID string) []Finding {
	var found []Finding
	if r.Plaintext > 0 {
		found = append(found, Finding{r.Resource, "plain text", r.Plaintext})
	}
	if r.Undecodable > 0 {
		found = append(found, Finding{r.Resource, "undecodable", r.Undecodable})
	}
	for _, key := range r.Keys {
		switch {
		case key.KeyID == keyID && keyID != "":
		case envelope.KeyOf(key.KeyID) == keyID && keyID != "":
			found = append(found, Finding{r.Resource, "written in an outage hold, under " + Printable(key.KeyID), key.Objects})
		case key.KeyID != "":
			found = append(found, Finding{r.Resource, "under another key: " + Printable(key.KeyID), key.Objects})
		default:
			found = append(found, Finding{r.Resource, "under another provider: " + Printable(key.Provider), key.Objects})
		}
	}
	return found
}
