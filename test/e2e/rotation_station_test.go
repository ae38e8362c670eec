//go:build e2e

package e2e

import (
	"bytes"
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

	"github.com/hsm-kms/hsm-kms/test/kube"
	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// station is a node as the runbook's reader sees it: a shell in which hsm-kms finds the node's own configuration.
type station struct {
	*alone
	http string // of the plugin
	bin  string // folder in front of PATH
}

// newStation makes a node with the token; its plugin does not run yet.
func newStation(t *testing.T, token *softhsm.Token, extra string) *station {
	t.Helper()
	bin, err := plugin.FindPrograms()
	if err != nil {
		t.Fatal(err)
	}
	ports, err := kube.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	dir := shortDir(t)
	s := &station{
		alone: &alone{rig: &rig{dir: dir}, token: token},
		http:  fmt.Sprintf("127.0.0.1:%d", ports[0]), bin: filepath.Join(dir, "bin"),
	}
	s.plugin, err = plugin.New(plugin.Options{Bin: bin.HSMKMS, Dir: filepath.Join(dir, "plugin"), Token: token, HTTP: s.http, Extra: quick + extra})
	if err != nil {
		t.Fatal(err)
	}
	// ACTIVATE_IN shortens the waits, and a station has no etcd: nothing else of a command is changed.
	script := fmt.Sprintf(`#!/bin/bash
args=("$@")
for i in "${!args[@]}"; do
	if [[ ${args[i]} == --activate-in && -n $ACTIVATE_IN ]]; then args[i+1]=$ACTIVATE_IN; fi
done
[[ "$1 $2" != "keys retire" ]] || args+=(--no-etcd)
[[ $1 == audit ]] || args+=(--config %q)
exec %q "${args[@]}"
`, s.plugin.Config(), bin.HSMKMS)
	if err := errors.Join(os.Mkdir(s.bin, 0o700), os.WriteFile(filepath.Join(s.bin, "hsm-kms"), []byte(script), 0o700)); err != nil { //nolint:gosec // a script
		t.Fatal(err)
	}
	t.Cleanup(func() { s.stopPlugin(t) })
	return s
}

// try runs a block at the station with variables ("NEW=...") and gives what it printed.
func (s *station) try(t *testing.T, block string, variables ...string) (string, error) {
	t.Helper()
	pin, err := s.token.PIN()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	args := s.shell(block)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), s.env(variables)...)
	cmd.Stdin = strings.NewReader(pin + "\n") // what a person types when asked
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	return out.String(), err
}

// shell is the program that runs a block, with what stands elsewhere here than on an operator's machine.
func (s *station) shell(block string) []string {
	block = strings.NewReplacer(
		"/usr/lib/softhsm/libsofthsm2.so", s.token.Module, "127.0.0.1:9808", s.http,
		"/etc/hsm-kms/pin", s.token.PINFile, "/var/log/hsm-kms/", filepath.Dir(s.plugin.AuditLog())+"/",
	).Replace(block)
	return []string{"bash", "-euo", "pipefail", "-c", block}
}

// env is the shell's environment, beside our own.
func (s *station) env(variables []string) []string {
	return slices.Concat(s.token.Env(), []string{"PATH=" + s.bin + ":" + os.Getenv("PATH"), "ACTIVATE_IN="}, variables)
}

// run is try for a block that must succeed and print the wanted texts.
func (s *station) run(t *testing.T, block string, variables []string, wants ...string) {
	t.Helper()
	out, err := s.try(t, block, variables...)
	if err != nil {
		t.Fatalf("%s: %v: %s", block, err, out)
	}
	for _, want := range wants {
		if !strings.Contains(out, want) {
			t.Errorf("%s does not print %q but: %s", block, want, out)
		}
	}
}

// in is the variable that makes a rotation quick.
func in(d time.Duration) []string { return []string{"ACTIVATE_IN=" + d.String()} }
