//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// runbook is docs/rotation.md: its sh blocks by heading, in order. Each is run once; those left over fail the test.
type runbook struct {
	blocks map[string][]string
}

// tpmBlock begins the block that TestRotationOnATPM runs.
const tpmBlock = "tpm2_ptool "

func readRunbook(t *testing.T) *runbook {
	t.Helper()
	return readPage(t, "../../docs/rotation.md")
}

// readPage reads another runbook.
func readPage(t *testing.T, path string) *runbook {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := &runbook{blocks: map[string][]string{}}
	heading, inside := "", false
	var block strings.Builder
	for line := range strings.Lines(string(data)) {
		text := strings.TrimSpace(line)
		switch {
		case inside && text == "```":
			inside = false
			r.blocks[heading] = append(r.blocks[heading], block.String())
			block.Reset()
		case inside:
			block.WriteString(text + "\n")
		case text == "```sh":
			inside = true
		case strings.HasPrefix(text, "#"):
			heading = strings.TrimLeft(text, "# ")
		}
	}
	return r
}

// next takes the next block of a section.
func (r *runbook) next(t *testing.T, heading string) string {
	t.Helper()
	left := r.blocks[heading]
	if len(left) == 0 {
		t.Fatalf("the runbook has no (more) commands under %q", heading)
	}
	r.blocks[heading] = left[1:]
	return left[0]
}

// The runbook's commands, as its readers meet them: two nodes share a token, the third has a copy.
func TestRotationRunbook(t *testing.T) {
	t.Parallel()
	book := readRunbook(t)
	token, err := softhsm.New(t.Context(), filepath.Join(shortDir(t), "hsm"), "k8s", "")
	if err != nil {
		t.Fatal(err)
	}
	one := newStation(t, token, "")
	first, err := one.plugin.CreateKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := token.CopyTo(filepath.Join(shortDir(t), "hsm"))
	if err != nil {
		t.Fatal(err)
	}
	two, three := newStation(t, token, ""), newStation(t, elsewhere, "")
	all := []*station{one, two, three}
	for _, s := range all {
		s.start(t, first.KeyID)
	}
	sealed := one.encrypt(t, one.dial(t))

	second := book.rotate(t, all, first)
	book.stopRotation(t, one, second)
	third := book.vendorsTool(t, one, two)
	book.nodeAway(t, one, three, second, third)
	book.compromised(t, one, two, sealed, first)
	book.conflicting(t, one)
	book.heldBack(t)
	for heading, left := range book.blocks {
		// TestWholeLife runs the first three. The last needs a systemd: manifests has what checks its units.
		if slices.Contains([]string{"Migrate", "Rehearse", letGo, "From a timer"}, heading) {
			continue
		}
		for _, block := range left {
			if !strings.HasPrefix(block, tpmBlock) {
				t.Errorf("docs/rotation.md: not run, under %q: %s", heading, block)
			}
		}
	}
	for _, s := range all {
		s.opens(t, s.dial(t), sealed)
	}
}

// rotate is a rotation that goes well.
func (r *runbook) rotate(t *testing.T, all []*station, old plugin.Key) plugin.Key {
	t.Helper()
	before := r.next(t, "Before a rotation")
	for _, s := range all {
		s.run(t, before, nil, "healthz  ok", "current", old.KeyID)
	}
	known := all[0].list(t)
	const wait = 8 * time.Second
	activation := time.Now().Add(wait)
	all[0].run(t, r.next(t, "Make the next version"), in(wait), "becomes current at")
	key := all[0].added(t, known)
	if err := all[0].token.CopyNew(all[2].token); err != nil {
		t.Fatal(err)
	}
	arrives := r.next(t, "See it arrive")
	for _, s := range all {
		eventually(t, "the version is ready", func() (bool, string) {
			out, err := s.try(t, arrives)
			// On a machine that is too slow to look in time it is current already.
			return err == nil && strings.Contains(out, key.KeyID) && (strings.Contains(out, "; ready)") || time.Now().After(activation)), out
		})
	}
	activated := r.next(t, "At the activation")
	for _, s := range all {
		s.waitStatus(t, key.KeyID, "ok")
		s.run(t, activated, nil, "healthz  ok", "key_id   "+key.KeyID)
	}
	return key
}

// stopRotation withdraws a version in time, and goes past one that it is too late for.
func (r *runbook) stopRotation(t *testing.T, s *station, current plugin.Key) {
	t.Helper()
	const heading = "Stop a rotation"
	withdraw, past, look := r.next(t, heading), r.next(t, heading), r.next(t, heading)
	key, err := s.plugin.RotateKey(t.Context(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s.run(t, look, nil, "pending", key.KeyID)
	s.run(t, withdraw, []string{"NEW=" + key.KeyID}, "Destroyed "+key.KeyID)
	s.waitStatus(t, current.KeyID, "ok")
	if out, err := s.try(t, withdraw, "NEW="+current.KeyID); err == nil {
		t.Errorf("the current key was withdrawn: %s", out)
	}
	known := s.list(t)
	s.run(t, past, in(time.Second))
	s.waitStatus(t, s.added(t, known).KeyID, "ok")
}

// vendorsTool makes the next version by name.
func (r *runbook) vendorsTool(t *testing.T, s, other *station) plugin.Key {
	t.Helper()
	const heading = "With the vendor's tool"
	known := s.list(t)
	name, make := r.next(t, heading), r.next(t, heading)
	s.run(t, name, nil, "kube-secrets", "hk1-")
	label, id, text := s.printID(t, 3*time.Second)
	s.run(t, make, []string{"LABEL=" + label, "ID=" + id, "TEXT=" + text})
	key := s.added(t, known)
	s.waitStatus(t, key.KeyID, "ok")
	other.waitStatus(t, key.KeyID, "ok")
	return key
}

// nodeAway brings back a node whose copy of the token lacks the versions that were made meanwhile.
func (r *runbook) nodeAway(t *testing.T, present, away *station, had, lacks plugin.Key) {
	t.Helper()
	const heading = "A node was away for a week"
	away.stopPlugin(t)
	sealed := present.encrypt(t, present.dial(t))
	away.start(t, had.KeyID)
	client := away.dial(t)
	out, err := away.try(t, r.next(t, heading))
	if err != nil || strings.Contains(out, lacks.KeyID) {
		t.Errorf("keys list of the node that was away: %v: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := client.Decrypt(ctx, decryptRequest(sealed)); status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), lacks.KeyID) {
		t.Errorf("decrypt without the key: %v", err)
	}
	if err := present.token.CopyNew(away.token); err != nil {
		t.Fatal(err)
	}
	away.waitStatus(t, lacks.KeyID, "ok")
	away.run(t, r.next(t, heading), nil, lacks.KeyID, "healthz  ok")
	away.opens(t, client, sealed)
}

// heldBack gives a node a second token that has none of the keys: the one that was current stays, the next one is held back,
// and an emergency key is not.
func (r *runbook) heldBack(t *testing.T) {
	t.Helper()
	const heading = "A key that is held back"
	token, err := softhsm.New(t.Context(), filepath.Join(shortDir(t), "hsm"), "k8s", "")
	if err != nil {
		t.Fatal(err)
	}
	lacking, err := token.Another(t.Context(), "backup", "")
	if err != nil {
		t.Fatal(err)
	}
	s := newStation(t, token, "")
	first, err := s.plugin.CreateKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.start(t, first.KeyID)
	s.stopPlugin(t)
	text, err := os.ReadFile(s.plugin.Config())
	if err != nil {
		t.Fatal(err)
	}
	second := fmt.Sprintf("  - {name: hsm-b, module: %q, label: %q, pinFile: %q}\nstateDir:", lacking.Module, lacking.Label, lacking.PINFile)
	if err := os.WriteFile(s.plugin.Config(), []byte(strings.Replace(string(text), "stateDir:", second, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start(t, first.KeyID)
	if _, err := s.plugin.RotateKey(t.Context(), time.Second); err != nil {
		t.Fatal(err)
	}
	status := r.next(t, heading)
	eventually(t, "the next key is held back", func() (bool, string) {
		out, err := s.try(t, status)
		return err == nil && strings.Contains(out, first.KeyID) && strings.Contains(out, "held back: hsm-b does not hold it"), out
	})
	known := s.list(t)
	s.run(t, r.next(t, heading), in(time.Second), "until it is copied to hsm-b")
	s.waitStatus(t, s.added(t, known).KeyID, "ok")
}

// compromised rotates in a hurry and rehearses the end of the old key on one node.
func (r *runbook) compromised(t *testing.T, s, other *station, sealed *kmsapi.EncryptResponse, old plugin.Key) {
	t.Helper()
	const heading = "A key is suspected to be compromised"
	known := s.list(t)
	s.run(t, r.next(t, heading), in(time.Second))
	next := s.added(t, known)
	for _, station := range []*station{s, other} {
		station.waitStatus(t, next.KeyID, "ok")
	}
	s.run(t, r.next(t, heading), nil)

	rehearsal := newStation(t, s.token, "\nrefuseKeys: ["+old.KeyID+"]")
	rehearsal.start(t, next.KeyID)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := rehearsal.dial(t).Decrypt(ctx, decryptRequest(sealed)); status.Code(err) != codes.NotFound {
		t.Errorf("decrypt under a key in refuseKeys: %v", err)
	}
	samples, err := metrics(ctx, rehearsal.http)
	if err != nil || samples["hsm_kms_refused_key_requests_total"] != "1" {
		t.Errorf("hsm_kms_refused_key_requests_total is %q, %v", samples["hsm_kms_refused_key_requests_total"], err)
	}
	checkWhoAsked(t, rehearsal.plugin, old.KeyID)
}

// checkWhoAsked checks that log and audit trail name the key that is refused, and who asked for it.
func checkWhoAsked(t *testing.T, p *plugin.Plugin, keyID string) {
	t.Helper()
	pid := fmt.Sprintf(`"pid":%d`, os.Getpid())
	told := slices.ContainsFunc(readLog(t, p), func(l logLine) bool {
		return l.Level == "WARN" && strings.Contains(l.KeyID, keyID) && strings.Contains(l.Error, "refuseKeys") && strings.Contains(l.text, pid)
	})
	if !told {
		t.Errorf("no line of %s says that %s asked for %s", p.Log(), pid, keyID)
	}
	trail, err := os.ReadFile(p.AuditLog())
	if err != nil {
		t.Fatal(err)
	}
	recorded := false
	for record := range strings.Lines(string(trail)) {
		recorded = recorded || strings.Contains(record, `"operation":"Decrypt"`) && strings.Contains(record, `"keyID":"`+keyID+`","code":"NotFound"`) && strings.Contains(record, pid)
	}
	if !recorded {
		t.Errorf("the audit trail does not say who asked for %s:\n%s", keyID, trail)
	}
}

// conflicting is a ring with one CKA_ID twice, and the rotation past it.
func (r *runbook) conflicting(t *testing.T, s *station) {
	t.Helper()
	const heading = "Two keys that could be meant"
	known := s.list(t)
	_, id, _ := s.printID(t, time.Second)
	s.ceremony(t, id)
	one := s.added(t, known)
	s.waitStatus(t, one.KeyID, "ok")
	known[one.KeyID] = one
	s.ceremony(t, id)
	two := s.added(t, known)
	s.waitStatus(t, one.KeyID, "the key ring is ambiguous")
	out, err := s.try(t, r.next(t, heading))
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 || !strings.Contains(out, two.KeyID) {
		t.Errorf("keys list of an ambiguous ring: %v: %s", err, out)
	}
	known[two.KeyID] = two
	s.run(t, r.next(t, heading), in(time.Second))
	s.waitStatus(t, s.added(t, known).KeyID, "ok")
	if out, err := s.plugin.Run(t.Context(), "keys", "list"); err != nil {
		t.Errorf("keys list after the rotation: %v: %s", err, out)
	}
}
