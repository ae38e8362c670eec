package retire

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
)

// Plan is what would be done, on which grounds, and everything that speaks against it.
type Plan struct {
	Content
	Target    envelope.Version // zero: no token holds the key
	Successor time.Time        // when the key that followed became current; zero: unknown
	Before    time.Time        // a pending key is not destroyed later than that; zero: of another key
	Settled   time.Duration    // must lie between the reports
	Refusals  []gate.Refusal   // empty: nothing speaks against it
	Warnings  []string
	ReadOnly  bool // the key's ring is only read: no key of it follows another
	Rehearsed bool // refuseKeys of this machine's configuration names the key
	// Whole: everything that a plan needs is known. Else there is nothing that Hash could stand for.
	Whole bool
}

// format is the version of the canonical encoding.
const format = "hsm-kms/retire/1"

// Content is what a plan is the same by. What changes while nothing changes, such as the time of a reading, is not in it.
// Field names and their order are a contract: Hash is made of them.
type Content struct {
	Format   string   `json:"format"`
	KeyID    string   `json:"keyID"`
	State    string   `json:"state"`  // of the key: pending, retained; empty: no token holds it
	Tokens   []Token  `json:"tokens"` // of the configuration, in its order
	Ring     []Key    `json:"ring"`   // what the tokens hold, the key included
	Cluster  string   `json:"cluster"`
	Evidence string   `json:"evidence"`  // SHA-256 of the file, hex; empty: none
	Snapshot []string `json:"snapshots"` // SHA-256 of each, hex, sorted
	Settle   string   `json:"settle"`
	Etcd     []Etcd   `json:"etcd"`     // read now
	Accepted []string `json:"accepted"` // what the operator answers for
}

// Token is one token of the configuration.
type Token struct {
	Name   string `json:"name"`
	Serial string `json:"serial"`
	Holds  bool   `json:"holds"` // the key: it is destroyed there
}

// Key is one version of the ring.
type Key struct {
	KeyID string `json:"keyID"` // or, of one that is not served and has none, its CKA_ID
	State string `json:"state"`
}

// Etcd is one etcd that was read.
type Etcd struct {
	Cluster  string   `json:"cluster"` // etcd's cluster id
	Prefixes []string `json:"prefixes"`
}

// encoded is the canonical encoding: JSON without blanks, fields in the order of the types, no HTML escapes, no newline.
func (c Content) encoded() []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(c); err != nil {
		panic(err) // strings, booleans and lists of them always can be encoded
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// Hash is the SHA-256 of the canonical encoding, in hex.
func (c Content) Hash() string {
	sum := sha256.Sum256(c.encoded())
	return hex.EncodeToString(sum[:])
}

// IsHash reports whether text can be a Hash.
func IsHash(text string) bool {
	b, err := hex.DecodeString(text)
	return err == nil && len(b) == sha256.Size
}

// Check returns a refusal if the plan is not the one whose hash was given.
func (p *Plan) Check(hash string) []gate.Refusal {
	if !p.Whole || p.Hash() == hash {
		return nil
	}
	return []gate.Refusal{{
		Reason: fmt.Sprintf("the plan has changed: --plan is %s, and it is now %s; its tokens, keys, evidence, snapshots, etcds or flags differ", hash, p.Hash()),
		Hint:   "see the new plan with --dry-run -o json (planned), and give its hash if you agree with it",
	}}
}

// Differs says how the plan differs from an earlier one that nothing spoke against; empty: it does not.
func (p *Plan) Differs(earlier *Plan) string {
	now, then := p.Content, earlier.Content
	if p.Hash() == earlier.Hash() {
		return ""
	}
	changed := "it was another"
	same := func(a, b any) bool {
		x, _ := json.Marshal(a)
		y, _ := json.Marshal(b)
		return bytes.Equal(x, y)
	}
	for _, part := range []struct {
		name      string
		then, now any
	}{
		{"the state of the key", then.State, now.State}, {"the tokens", then.Tokens, now.Tokens}, {"the keys of the ring", then.Ring, now.Ring},
		{"the cluster of the ring", then.Cluster, now.Cluster}, {"the etcds", then.Etcd, now.Etcd},
	} {
		if !same(part.then, part.now) {
			text, _ := json.Marshal([]any{part.then, part.now})
			return fmt.Sprintf("%s changed: %s", part.name, text)
		}
	}
	return changed
}
