package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/testworker"
)

// The scripts in testdata/script run the program as its user does, each in a folder of its own with SoftHSM tokens of its
// own. Beside testscript's own commands they have
//
//	token LABEL                 makes a token; its PIN file is hsm/LABEL.pin
//	config [FIELD=VALUE]...     writes config.yaml: ring, label, pin, module, token (more fields of the token), tokens (more
//	                            tokens), state, socket, http, audit, extra (more lines; "; " is a new line)
//	refused CODE MESSAGE [HINT] wants of the command before exactly this on stderr, and this exit code; without HINT, any
//	code CODE [COMMAND]         wants this exit code of the command before, or of the last hsm-kms COMMAND
//	until PATTERN COMMAND...    runs a command until its output matches, for at most 20 s
//	plant ARGUMENTS             makes a key with attributes that hsm-kms would not give it (see plant_test.go)
//	keyid NAME STATE            sets $NAME to the key_id of the ring's last key in that state, or of the latest one
//	hashof NAME FILE            sets $NAME to the plan in the JSON of keys retire, which is the SHA-256 of what was planned
//	taken NAME                  sets $NAME to a TCP address that is in use until the script ends
//	term                        sends SIGTERM to all commands that run in the background
//	etcd put PATH [KEYID] | delete PATH | cut PATH | other KEY [KEYID] | plain KEY | named PATH KEYID PROVIDER | save FILE |
//	     compact | back N | cluster N | term N | log N | role [PREFIX] | namespace UID | renew DURATION |
//	     seal PATH KIND | move PATH PATH
//	                            writes to the etcd at $ETCD (see fake_etcd_test.go), an undecodable object too; saves a
//	                            snapshot; forgets the past; goes back by N revisions; has another cluster id or raft term;
//	                            has N entries more in its raft log than revisions; lets its client read what begins with
//	                            PREFIX alone; has a namespace kube-system; has a Lease of a node whose clock is ahead;
//	                            other writes outside /registry, or deletes there;
//	                            plain writes plain text anywhere; named has another name of the provider; seal has the
//	                            plugin of the script wrap a DEK (KIND key or seed) and writes a Secret under it; move
//	                            copies a value to another key
//	otherelf FROM TO            copies a shared library and makes it one for another processor
//
// In MESSAGE and PATTERN, $NAME is the environment's; in MESSAGE and HINT, … stands for anything.
func TestScripts(t *testing.T) {
	t.Parallel()
	module, err := softhsm.Module()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("MODULE", module)
			env.Setenv(testworker.Reports, os.Getenv(testworker.Reports))
			env.Setenv("GORACE", "atexit_sleep_ms=0") // else each command waits a second for data races
			env.Setenv("TRANSCRIPT", filepath.Join(env.WorkDir, ".transcript"))
			env.Setenv("SOFTHSM2_CONF", filepath.Join(env.WorkDir, "hsm", "softhsm2.conf"))
			env.Defer(func() { noPINIn(t, env.WorkDir) })
			if err := giveEtcd(env); err != nil {
				return err
			}
			// The folder of the socket, and those above it, must be nobody else's.
			return os.Mkdir(filepath.Join(env.WorkDir, "run"), 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"token": tokenCmd, "config": configCmd, "refused": refusedCmd, "code": codeCmd, "until": untilCmd, "otherelf": otherELFCmd,
			"keyid": keyidCmd, "taken": takenCmd, "term": termCmd, "etcd": etcdCmd, "hashof": hashofCmd,
		},
		RequireUniqueNames: true,
	})
}

func TestMain(m *testing.M) {
	testscript.Main(tests{m}, map[string]func(){"hsm-kms": transcribed, "plant": plant})
}

// tests are those of the package, and the workers in them.
type tests struct{ *testing.M }

// Run implements testscript.TestingM.
func (t tests) Run() int { return testworker.Run(t.M) }

// transcribed is main, with all output and the exit code kept beside for the script.
func transcribed() {
	transcript, err := os.OpenFile(os.Getenv("TRANSCRIPT"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	code := run(context.Background(), os.Args[1:], io.MultiWriter(os.Stdout, transcript), io.MultiWriter(os.Stderr, transcript))
	name := "none"
	if len(os.Args) > 1 {
		name = os.Args[1]
	}
	for _, name := range []string{".code", ".code-" + name} {
		if err := os.WriteFile(os.Getenv("TRANSCRIPT")+name, []byte(strconv.Itoa(code)), 0o600); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 3
		}
	}
	os.Exit(code)
}

// noPINIn looks for the PINs in all that the script's commands said and left behind.
func noPINIn(t *testing.T, dir string) {
	pins, err := filepath.Glob(filepath.Join(dir, "hsm", "*.pin"))
	if err != nil {
		t.Error(err)
	}
	for _, file := range pins {
		pin, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
			continue
		}
		pin = bytes.TrimSpace(pin)
		err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() || strings.HasSuffix(path, ".pin") || len(pin) < 8 {
				return err
			}
			text, err := os.ReadFile(path)
			if bytes.Contains(text, pin) {
				t.Errorf("%s holds the PIN of %s", path, filepath.Base(file))
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func tokenCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: token LABEL")
	}
	dir := ts.MkAbs("hsm")
	module, err := softhsm.Module()
	ts.Check(err)
	if _, err := os.Stat(filepath.Join(dir, "softhsm2.conf")); err == nil {
		_, err := (&softhsm.Token{Dir: dir, Module: module}).Another(context.Background(), args[0], "")
		ts.Check(err)
		return
	}
	_, err = softhsm.New(context.Background(), dir, args[0], "")
	ts.Check(err)
}

func configCmd(ts *testscript.TestScript, neg bool, args []string) {
	set := map[string]string{
		"ring": "kube-secrets", "label": "label: k8s", "pin": ts.MkAbs("hsm/k8s.pin"), "module": ts.Getenv("MODULE"), "token": "", "tokens": "",
		"state": ts.MkAbs("state"), "socket": ts.MkAbs("run/kms.sock"), "http": "", "audit": ts.MkAbs("audit.log"), "extra": "",
	}
	for _, arg := range args {
		field, value, ok := strings.Cut(arg, "=")
		if _, known := set[field]; neg || !ok || !known {
			ts.Fatalf("config: %q is not FIELD=VALUE", arg)
		}
		set[field] = value
	}
	text := fmt.Sprintf(`apiVersion: hsm-kms/v1
kind: PluginConfiguration
keyRing: %s
tokens:
- {name: hsm-a, module: %q, %s, pinFile: %q%s}
%s
stateDir: %q
socket: {path: %q}
http: {address: %q}
audit: {path: %q}
probeInterval: 1s
refreshInterval: 1s
%s
`, set["ring"], set["module"], set["label"], set["pin"], set["token"], strings.ReplaceAll(set["tokens"], "; ", "\n"), set["state"], set["socket"], set["http"], set["audit"],
		strings.ReplaceAll(set["extra"], "; ", "\n"))
	ts.Check(os.WriteFile(ts.MkAbs("config.yaml"), []byte(text), 0o600))
}

func refusedCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: refused CODE MESSAGE [HINT]")
	}
	want := "hsm-kms: " + args[1] + "\n"
	if len(args) == 3 {
		want += "hint: " + args[2] + "\n"
	}
	got := regexp.MustCompile(`(?m)^\{.*\}\n`).ReplaceAllString(ts.ReadFile("stderr"), "") // without the log
	pattern := strings.ReplaceAll(regexp.QuoteMeta(os.Expand(want, ts.Getenv)), "…", "(?s:.*)")
	if len(args) == 2 {
		pattern += "(hint: .*\n)?"
	}
	if !regexp.MustCompile("^" + pattern + "$").MatchString(got) {
		ts.Fatalf("stderr is\n%s\nwant\n%s", got, os.Expand(want, ts.Getenv))
	}
	codeCmd(ts, false, args[:1])
}

func codeCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: code CODE [COMMAND]")
	}
	name := ".code"
	if len(args) == 2 {
		name += "-" + args[1]
	}
	got, err := os.ReadFile(ts.Getenv("TRANSCRIPT") + name)
	ts.Check(err)
	if string(got) != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// untilCmd polls: another process gives no event.
func untilCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until PATTERN COMMAND...")
	}
	pattern, err := regexp.Compile("(?m)" + os.Expand(args[0], ts.Getenv))
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		path, err := exec.LookPath(args[1])
		if args[1] == "hsm-kms" {
			path, err = filepath.Join(strings.Split(ts.Getenv("PATH"), string(os.PathListSeparator))[0], "hsm-kms"), nil
		}
		ts.Check(err)
		cmd := exec.CommandContext(ctx, path, args[2:]...)
		cmd.Dir = ts.MkAbs(".")
		for _, name := range []string{"PATH", "HOME", "TRANSCRIPT", "SOFTHSM2_CONF", "GORACE"} {
			cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
		}
		out, _ := cmd.CombinedOutput()
		if pattern.Match(out) {
			return
		}
		select {
		case <-ctx.Done():
			ts.Fatalf("%s never said %s; last:\n%s", strings.Join(args[1:], " "), args[0], out)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func keyidCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: keyid NAME STATE")
	}
	ts.Check(ts.Exec("hsm-kms", "keys", "list", "-o", "json", "--config", "config.yaml"))
	var list []keyJSON
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &list))
	for _, k := range slices.Backward(list) {
		if k.State == args[1] || args[1] == "latest" {
			ts.Setenv(args[0], k.KeyID)
			return
		}
	}
	ts.Fatalf("no key is %s", args[1])
}

func hashofCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: hashof NAME FILE")
	}
	var said struct {
		Plan    string
		Planned json.RawMessage
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[1])), &said))
	var planned bytes.Buffer
	ts.Check(json.Compact(&planned, said.Planned))
	if sum := sha256.Sum256(planned.Bytes()); said.Plan != hex.EncodeToString(sum[:]) {
		ts.Fatalf("the plan %s is not the SHA-256 of %s", said.Plan, planned.Bytes())
	}
	ts.Setenv(args[0], said.Plan)
}

func termCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: term")
	}
	for _, cmd := range ts.BackgroundCmds() {
		if err := cmd.Process.Signal(unix.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
			ts.Check(err)
		}
	}
}

func takenCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: taken NAME")
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { _ = lis.Close() })
	ts.Setenv(args[0], lis.Addr().String())
}

// otherELFCmd changes e_machine (offset 18, two bytes) to one that Go has no port for.
func otherELFCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: otherelf FROM TO")
	}
	text, err := os.ReadFile(args[0])
	ts.Check(err)
	text[18], text[19] = 8, 0 // EM_MIPS
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), text, 0o700))
}
