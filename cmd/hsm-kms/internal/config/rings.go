package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// ReadRing is a ring that is served for Decrypt only: that of an HSM which is being replaced, or of the one that replaces it.
// docs/replace-hsm.md is the way from one to the other.
type ReadRing struct {
	// KeyRing is the ring's name, as the keyRing of the file; no two rings have the same. Required.
	KeyRing string `yaml:"keyRing"`
	// Profile is that of this ring. Default aes-gcm.
	Profile string `yaml:"profile"`
	// Tokens are the tokens that hold this ring, as those of the file. Required. Their names differ from those of all other
	// rings, also where a token holds two rings.
	Tokens []Token `yaml:"tokens"`
	// Retiring says that nothing is to be read from this ring any more: `keys retire` may take its keys, the last one too.
	// Default false. The ring is served all the same.
	Retiring bool `yaml:"retiring"`
}

// UnmarshalYAML fills in the defaults, as Token's does.
func (r *ReadRing) UnmarshalYAML(unmarshal func(any) error) error {
	type fields ReadRing
	*r = ReadRing{Profile: ProfileAESGCM}
	return unmarshal((*fields)(r))
}

// ForRing is the configuration of one ring: c itself, or a copy that has a read ring in the place of keyRing, profile and
// tokens, beside what the file says of it. The empty name is that of the ring that is written under.
func (c *Config) ForRing(name string) (*Config, *ReadRing, error) {
	if name == "" || name == c.KeyRing {
		return c, nil, nil
	}
	i := slices.IndexFunc(c.ReadRings, func(r ReadRing) bool { return r.KeyRing == name })
	if i < 0 {
		return nil, nil, hint.Wrap(fmt.Errorf("--ring %q names no ring of the configuration", name), "the rings are: "+strings.Join(c.RingNames(), ", "))
	}
	read := &c.ReadRings[i]
	of := *c
	of.KeyRing, of.Profile, of.Tokens = read.KeyRing, read.Profile, read.Tokens
	return &of, read, nil
}

// RingNames are the names of all rings, that of the one that is written under first.
func (c *Config) RingNames() []string {
	names := []string{c.KeyRing}
	for _, r := range c.ReadRings {
		names = append(names, r.KeyRing)
	}
	return names
}

// AllTokens are the tokens of all rings. One that holds two rings is in it twice.
func (c *Config) AllTokens() []Token {
	all := slices.Clone(c.Tokens)
	for _, r := range c.ReadRings {
		all = append(all, r.Tokens...)
	}
	return all
}

// validateRings judges the rings and their tokens.
func (c *Config) validateRings(p *problems) {
	names := map[string]string{} // of tokens, to the field that has them
	validateRing(p, "", c.KeyRing, c.Profile)
	validateTokens(p, "tokens", c.Tokens, c.Profile, names)
	if len(c.ReadRings) > maxReadRings {
		p.report("readRings", fmt.Sprintf("has %d entries, at most %d are accepted", len(c.ReadRings), maxReadRings), "take out the rings whose keys have been retired")
		return
	}
	if p.has(fmt.Sprintf("readRings[%d]", len(c.ReadRings))) {
		return // as in validateTokens
	}
	for i, r := range c.ReadRings {
		field := fmt.Sprintf("readRings[%d].", i)
		validateRing(p, field, r.KeyRing, r.Profile)
		if j := slices.Index(c.RingNames(), r.KeyRing); j <= i {
			other := "keyRing"
			if j > 0 {
				other = fmt.Sprintf("readRings[%d].keyRing", j-1)
			}
			p.report(field+"keyRing", fmt.Sprintf("%q is %s too", r.KeyRing, other),
				"each ring has a name of its own: the new HSM's ring needs a new one, because the name is part of every key_id")
		}
		validateTokens(p, field+"tokens", r.Tokens, r.Profile, names)
	}
}

func validateRing(p *problems, prefix, name, profile string) {
	if !ringPattern.MatchString(name) {
		p.badValue(prefix+"keyRing", name, "1 to 63 of a-z, 0-9, dot and hyphen", "name the ring after its cluster: no two clusters share one")
	}
	p.oneOf(prefix+"profile", profile, ProfileAESGCM, ProfileHMACKDF, ProfileAESGCMHSMIV)
}
