package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/retire"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/sources"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
)

// terminal is a pseudo-terminal: what is written to ours is typed at theirs.
func terminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { _ = ours.Close() })
	if err := unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = theirs.Close() })
	return ours, theirs
}

// prompted is standard error: it does something when the prompt appears.
type prompted struct {
	bytes.Buffer
	do func()
}

func (p *prompted) Write(text []byte) (int, error) {
	n, err := p.Buffer.Write(text)
	if bytes.Contains(text, []byte("Type its fingerprint")) {
		p.do()
	}
	return n, err
}

// Time passes between the question and its answer: etcd is read and the ring judged again.
func TestRetireJudgesAgainAfterThePrompt(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		meanwhile func(*retireRig)
		want      string // the refusal; empty: none
	}{
		"nothing changed":         {func(*retireRig) {}, ""},
		"something was written":   {func(r *retireRig) { r.must(r.etcd.put("secrets/shop/late", r.old)) }, "etcd now: 1 object under "},
		"etcd was restored":       {func(r *retireRig) { r.etcd.goBack(1) }, "it was restored meanwhile"},
		"the plugin names it now": {func(r *retireRig) { r.serve("ok", r.old) }, "the plugin of this machine names "},
		"the plugin proved it last": {func(r *retireRig) {
			r.file("state/proven.json", `{"keyID":"`+r.old+`","provenAt":"2020-01-01T00:00:00Z"}`)
		}, "the plugin of this machine proved "},
		"what it proved is lost":     {func(r *retireRig) { r.file("state/proven.json", "{") }, "it is not clear which key the plugin of this machine proved last"},
		"another command is at work": {func(r *retireRig) { r.lock() }, "another hsm-kms command is changing the ring"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRetireRig(t)
			ours, theirs := terminal(t)
			var out bytes.Buffer
			errOut := &prompted{do: func() {
				test.meanwhile(r)
				_, err := ours.WriteString(r.old[strings.LastIndex(r.old, "/")+1:] + "\n")
				r.must(err)
			}}
			c := &command{out: &out, errOut: errOut, configPath: r.configPath(), output: "table"}
			f := &retireFlags{etcdFlags: etcdFlags{sources.Options{Endpoints: []string{r.etcd.url}, Prefixes: []string{"/registry"}}}, options: retire.Options{EvidenceFile: r.report, Accepted: gate.Accepted{SoleCluster: true}}}
			err := c.runRetire(t.Context(), theirs, f, r.old)
			if test.want == "" {
				if err != nil || r.holders() != nil || !strings.Contains(out.String(), "Destroyed "+r.old+" on hsm-a, hsm-b.") {
					t.Errorf("%v: %s%s", err, out.String(), errOut.String())
				}
				return
			}
			if !app.IsFinding(err) || !strings.Contains(err.Error(), test.want) || len(r.holders()) != 2 {
				t.Errorf("%v, want %q: %s", err, test.want, errOut.String())
			}
		})
	}
}

// lock holds what lets one command at a time change the ring.
func (r *retireRig) lock() {
	unlock, err := app.LockKeys(r.state)
	r.must(err)
	r.t.Cleanup(unlock)
}
