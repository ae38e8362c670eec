package docs

import (
	"go/ast"
	"go/token"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// An instruction to make a key go away: the verb in its base form together with a key, or the tool with which that is done.
var (
	makesGo  = regexp.MustCompile(`(?i)(\b(delete|remove|destroy|erase|wipe|purge|relabel|replace|overwrite)\b|--delete-object)`)
	aboutKey = regexp.MustCompile(`(?i)(\bkeys?\b|vendor's tool|pkcs11-tool|\bobject with\b|\bthe one that\b|\bthe other\b)`)
	byVendor = regexp.MustCompile(`(?i)\b(deleted|removed|destroyed|erased|wiped|relabell?ed)\b[^.;]*\bvendor's tool`)
	forbids  = regexp.MustCompile(`(?i)\b(do not|never|may not|cannot|nobody may|not to)\b[^.;:]*$`)
)

// sayToRemoveKeys reports whether a text tells its reader to make a key go away.
func sayToRemoveKeys(text string) bool {
	for _, sentence := range regexp.MustCompile(`[.;\n]`).Split(text, -1) {
		at := makesGo.FindStringIndex(sentence)
		if at != nil && aboutKey.MatchString(sentence) && !forbids.MatchString(sentence[:at[0]]) {
			return true
		}
		if byVendor.MatchString(sentence) {
			return true
		}
	}
	return false
}

// allowed are texts that only look so. Each is the beginning of a text.
func allowed() []string {
	return []string{
		"Destroy a key that nothing needs",     // what keys retire is, which asks for proof
		"check everything and destroy nothing", // its --dry-run
		"remove the line to get the default",   // of the configuration
	}
}

// TestHintsKeepKeys: no text of the program tells anybody to delete, remove, relabel or destroy a key: where two conflict,
// each may be in use, and what is under one that goes is lost.
func TestHintsKeepKeys(t *testing.T) {
	t.Parallel()
	texts := 0
	for _, s := range sourcesOf(t) {
		ast.Inspect(s.File, func(n ast.Node) bool {
			literal, ok := n.(*ast.BasicLit)
			if !ok || literal.Kind != token.STRING {
				return true
			}
			text, err := strconv.Unquote(literal.Value)
			texts++
			fine := slices.ContainsFunc(allowed(), func(begin string) bool { return strings.HasPrefix(text, begin) })
			if err != nil || !fine && sayToRemoveKeys(text) {
				t.Errorf("%s tells its reader to make a key go away: %q (%v)", s.Path, text, err)
			}
			return true
		})
	}
	if texts < 1000 {
		t.Errorf("only %d texts were looked at", texts)
	}
}

// The documents do not either, and name no command for it.
func TestDocumentsKeepKeys(t *testing.T) {
	t.Parallel()
	withTool := regexp.MustCompile(`(?i)\b(delete|remove|destroy|erase|relabel)\b[^.;|]*(vendor's tool|pkcs11-tool)|--delete-object`)
	for path, text := range documents(t) {
		for i, line := range strings.Split(text, "\n") {
			if at := withTool.FindStringIndex(line); at != nil && !forbids.MatchString(line[:at[0]]) {
				t.Errorf("%s:%d tells its reader to make a key go away: %s", path, i+1, line[at[0]:at[1]])
			}
		}
	}
}

// The check finds what it is there for.
func TestSayToRemoveKeys(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"see which keys there are with: hsm-kms keys list; remove or relabel the one that does not belong",
		"find out who made the second; when nothing is encrypted under it, remove it with the vendor's tool",
		"find out why with: hsm-kms keys list; fix that, or delete the object with the vendor's tool when you know that it is not needed",
		"check that profile is that of the ring; a key that does not belong to it is relabelled or removed with the vendor's tool",
		"run pkcs11-tool --delete-object --type secrkey",
		"find out which is the cluster's (hsm-kms etcd report shows what etcd needs) and replace the other by a copy of it",
		"Destroy the key.",
	} {
		if !sayToRemoveKeys(text) {
			t.Errorf("not found: %s", text)
		}
	}
	for _, text := range []string{
		"keep every key; find out which key_ids are in use", "never delete a key", "do not remove it with the vendor's tool", "remove cachesize",
		"a key is destroyed only when every configured token can be reached", "remove the file; the plugin makes a new one. The key stays",
	} {
		if sayToRemoveKeys(text) {
			t.Errorf("found: %s", text)
		}
	}
}

// TestSamplesNameNoRing: no sample hands every reader the same ring: clusters that share a ring on one token share its keys.
func TestSamplesNameNoRing(t *testing.T) {
	t.Parallel()
	samples := 0
	for path, text := range documents(t) {
		for _, ring := range regexp.MustCompile(`(?m)^ *keyRing: *(\S+)`).FindAllStringSubmatch(text, -1) {
			if samples++; ring[1] != "change-me" && !strings.HasSuffix(ring[1], "-$RANDOM") {
				t.Errorf("%s has a sample with the ring %s", path, ring[1])
			}
		}
	}
	if samples < 4 {
		t.Errorf("only %d samples were found", samples)
	}
}
