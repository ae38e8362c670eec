package hardening

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/internal/filelock"
	"github.com/hsm-kms/hsm-kms/test/evidence/kubestore"
	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// interrupted is a command that is sent signals, and the token that it works on.
type interrupted struct {
	t      *testing.T
	bin    string // its own path of the program, so that its processes can be told from others
	dir    string
	token  *softhsm.Token
	before *softhsm.Token // the token as each round finds it
	plugin *plugin.Plugin
	args   []string
	took   time.Duration // without a signal
	keys   []plugin.Key  // before
	judge  func(*interrupted, ended) error
}

// ended is what a command has said when it has ended.
type ended struct {
	sig         unix.Signal
	out, errOut string
	state       *os.ProcessState
}

// byItself reports whether the command ended in good order.
func (e ended) byItself() bool { return e.state.Exited() }

const (
	cluster     = "0a0a0a0a-0000-4000-8000-00000000000a"
	secretInUse = "/registry/secrets/shop/db"
)

// TestSignals sends SIGTERM, SIGINT and SIGKILL to each command at moments that are spread over its run time. The token stays
// whole, no process, lock or half-written file is left, and what was done to the ring is said. Each signal is sent three
// times, or HSM_KMS_SIGNALS times (400).
func TestSignals(t *testing.T) {
	t.Parallel()
	rounds := count(t, "HSM_KMS_SIGNALS", 3)
	if signal.Ignored(unix.SIGINT) { // in a shell's background, and then in what is started here too
		signal.Notify(make(chan os.Signal, 1), unix.SIGINT)
	}
	for name, prepare := range commands() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newInterrupted(t)
			prepare(c)
			c.measure()
			for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGKILL} {
				whole, longest := 0, time.Duration(0)
				for i := range rounds {
					e, left := c.round(c.took*11/10*time.Duration(i)/time.Duration(rounds)+rand.N(c.took/time.Duration(rounds)+1), func(pid int) { _ = unix.Kill(pid, sig) })
					e.sig = sig
					if e.byItself() {
						whole++
					}
					longest = max(longest, left)
					if err := c.inspect(e); err != nil {
						t.Errorf("%s %d of %d: %v\n%s\n%s%s", unix.SignalName(sig), i, rounds, err, e.state, e.out, e.errOut)
					}
				}
				t.Logf("%s: %d of %d ended in good order; the last process was gone %s after the command at most", unix.SignalName(sig), whole, rounds, longest.Round(time.Millisecond))
			}
		})
	}
}

// TestKilledWithItsWorkers counts how often SoftHSM loses a token when the command and its worker are killed at one moment, as
// by the kernel when memory runs out: docs/hsm-support.md says what can happen then. HSM_KMS_SIGNALS is the number of times.
func TestKilledWithItsWorkers(t *testing.T) {
	t.Parallel()
	if os.Getenv("HSM_KMS_SIGNALS") == "" {
		t.Skip("it proves nothing about hsm-kms: HSM_KMS_SIGNALS asks for it")
	}
	rounds := count(t, "HSM_KMS_SIGNALS", 0)
	for _, name := range []string{"keys list", "keys rotate", "serve"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newInterrupted(t)
			commands()[name](c)
			c.measure()
			empty, damaged := 0, 0
			for i := range rounds {
				c.round(c.took*time.Duration(i)/time.Duration(rounds)+rand.N(c.took/time.Duration(rounds)+1), func(pid int) {
					for _, worker := range c.workers() {
						_ = unix.Kill(worker, unix.SIGKILL)
					}
					_ = unix.Kill(pid, unix.SIGKILL)
				})
				if err := c.inspectStore(); err != nil {
					empty++
				} else if _, err := c.plugin.Keys(c.t.Context()); err != nil {
					damaged++
				}
			}
			t.Logf("of %d kills, %d left an empty file in the token's folder, and %d more a token that does not work", rounds, empty, damaged)
		})
	}
}

// count is a number of the environment.
func count(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q is no number of times", name, text)
	}
	return n
}

// commands prepares the token and the arguments of each.
func commands() map[string]func(*interrupted) {
	return map[string]func(*interrupted){
		"serve": func(c *interrupted) {
			c.makeKey()
			c.args = []string{"serve"}
			c.judge = (*interrupted).ringIsAsBefore
		},
		"keys create": func(c *interrupted) {
			c.args, c.judge = []string{"keys", "create", "-o", "json"}, (*interrupted).keyIsTold
		},
		"keys rotate": func(c *interrupted) {
			c.makeKey()
			c.args, c.judge = []string{"keys", "rotate", "--activate-in", "1h", "-o", "json"}, (*interrupted).keyIsTold
		},
		"keys list": func(c *interrupted) {
			c.makeKey()
			c.args, c.judge = []string{"keys", "list", "-o", "json"}, (*interrupted).ringIsAsBefore
		},
		"keys retire": func(c *interrupted) {
			c.makeKey()
			pending, err := c.plugin.RotateKey(c.t.Context(), 24*time.Hour)
			c.must(err)
			c.args = []string{"keys", "retire", pending.KeyID, "--no-etcd", "--sole-cluster", "--yes", "-o", "json"}
			c.judge = (*interrupted).destructionIsTold
		},
		"keys bind": func(c *interrupted) {
			c.makeKey()
			c.args, c.judge = []string{"keys", "bind", "--cluster", cluster, "-o", "json"}, (*interrupted).bindingIsTold
		},
		"doctor": func(c *interrupted) {
			c.makeKey()
			c.args, c.judge = []string{"doctor", "-o", "json"}, (*interrupted).ringIsAsBefore
		},
		"etcd get": func(c *interrupted) {
			c.makeKey()
			c.args = []string{"etcd", "get", secretInUse, "--snapshot", c.snapshot(), "--break-glass", "a test", "--to", c.to()}
			c.judge = (*interrupted).objectIsWhole
		},
	}
}

func newInterrupted(t *testing.T) *interrupted {
	t.Helper()
	c := &interrupted{t: t, dir: shortDir(t)}
	c.bin = filepath.Join(c.dir, "hsm-kms")
	c.must(os.Symlink(program, c.bin))
	var err error
	c.token, err = softhsm.New(t.Context(), filepath.Join(c.dir, "softhsm"), "k8s", "")
	c.must(err)
	c.plugin, err = plugin.New(plugin.Options{Bin: c.bin, Dir: filepath.Join(c.dir, "plugin"), Token: c.token})
	c.must(err)
	return c
}

func (c *interrupted) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *interrupted) makeKey() {
	c.t.Helper()
	_, err := c.plugin.CreateKey(c.t.Context())
	c.must(err)
}

func (c *interrupted) to() string    { return filepath.Join(c.dir, "secret.yaml") }
func (c *interrupted) state() string { return filepath.Join(filepath.Dir(c.plugin.Config()), "state") }

// snapshot is one of an etcd with one Secret, under the key of the ring.
func (c *interrupted) snapshot() string {
	c.t.Helper()
	_, err := c.plugin.Start(c.t.Context())
	c.must(err)
	w := &rig{t: c.t, plugin: c.plugin}
	dek := &kubestore.DEK{Provider: "hsm-kms", Plain: bytes.Repeat([]byte{7}, 32)}
	answer, err := w.client().Encrypt(c.t.Context(), &kmsapi.EncryptRequest{Plaintext: dek.Plain, Uid: "snapshot"})
	c.must(err)
	c.must(c.plugin.Stop())
	dek.KeyID, dek.Wrapped = answer.KeyId, answer.Ciphertext
	secret, err := kubestore.Secret("shop", "db", []byte("secret"))
	c.must(err)
	value, err := dek.Value(secretInUse, secret)
	c.must(err)
	data, err := proto.Marshal(&mvccpb.KeyValue{Key: []byte(secretInUse), Value: value, ModRevision: 2})
	c.must(err)
	path := filepath.Join(c.dir, "snapshot.db")
	db, err := bolt.Open(path, 0o600, nil)
	c.must(err)
	c.must(db.Update(func(tx *bolt.Tx) error {
		bucket, err := tx.CreateBucket([]byte("key"))
		if err != nil {
			return err
		}
		return bucket.Put(fmt.Appendf(binary.BigEndian.AppendUint64(nil, 2), "_%s", make([]byte, 8)), data)
	}))
	c.must(db.Close())
	return path
}

// measure keeps the token as it is, and sees what the command does, and in which time, when no signal comes.
func (c *interrupted) measure() {
	c.t.Helper()
	var err error
	c.keys, err = c.plugin.Keys(c.t.Context())
	c.must(err)
	c.before, err = c.token.CopyTo(filepath.Join(c.dir, "before"))
	c.must(err)
	began := time.Now()
	if c.args[0] == "serve" {
		_, err := c.plugin.Start(c.t.Context())
		c.must(err)
		c.took = 2 * time.Since(began)
		c.must(c.plugin.Stop())
		return
	}
	e, _ := c.round(time.Minute, nil)
	c.took = time.Since(began)
	if !e.byItself() || e.state.ExitCode() == 2 {
		c.t.Fatalf("without a signal: %s: %s%s", e.state, e.out, e.errOut)
	}
	if err := c.inspect(e); err != nil {
		c.t.Fatalf("without a signal: %v: %s%s", err, e.out, e.errOut)
	}
}

// round starts the command on the token as it was before, interrupts it after the delay, waits for its end, and for that of its workers, which
// took left. An interruption of nil never comes.
func (c *interrupted) round(delay time.Duration, interrupt func(pid int)) (e ended, left time.Duration) {
	c.t.Helper()
	c.must(os.RemoveAll(c.token.Store()))
	c.must(os.CopyFS(c.token.Store(), os.DirFS(c.before.Store())))
	c.must(os.RemoveAll(c.state()))
	c.must(os.Mkdir(c.state(), 0o700))
	if err := os.Remove(c.to()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(c.t.Context(), c.bin, append(slices.Clone(c.args), "--config", c.plugin.Config())...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), c.token.Env()...), &out, &errOut
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = patience
	c.must(cmd.Start())
	done := make(chan struct{})
	go func() { defer close(done); _ = cmd.Wait() }()
	if interrupt != nil {
		select {
		case <-done:
		case <-time.After(delay):
			interrupt(cmd.Process.Pid)
		}
	}
	select {
	case <-done:
	case <-time.After(patience):
		_ = cmd.Process.Kill()
		<-done
		c.t.Fatalf("it did not end within %s: %s%s", patience, out.String(), errOut.String())
	}
	began := time.Now()
	eventually(c.t, func() error {
		if n := len(c.workers()); n > 0 {
			return fmt.Errorf("%d workers are left", n)
		}
		return nil
	})
	return ended{out: out.String(), errOut: errOut.String(), state: cmd.ProcessState}, time.Since(began)
}

// workers are those of this command that live.
func (c *interrupted) workers() (pids []int) {
	entries, err := os.ReadDir("/proc")
	c.must(err)
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		line, _ := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline")) // it may be gone
		if bytes.HasPrefix(line, []byte(c.bin+"\x00worker\x00")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// inspect looks at what the command has left. What it left of a write, the next command has removed.
func (c *interrupted) inspect(e ended) error {
	if err := errors.Join(c.inspectStore(), c.inspectState()); err != nil {
		return err
	}
	if err := c.judge(c, e); err != nil {
		return err
	}
	left, err := filepath.Glob(filepath.Join(c.state(), ".*.new-*"))
	if err == nil && len(left) > 0 && e.sig != unix.SIGKILL {
		err = fmt.Errorf("%q are left", left)
	}
	return err
}

// inspectStore: SoftHSM empties a file before it writes it.
func (c *interrupted) inspectStore() error {
	return filepath.WalkDir(c.token.Store(), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".object") {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Size() == 0 {
			err = fmt.Errorf("%s is empty", path)
		}
		return err
	})
}

// inspectState: no lock is held, and no file is half written.
func (c *interrupted) inspectState() error {
	return filepath.WalkDir(c.state(), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		if filelock.IsHeld(file) {
			return fmt.Errorf("the lock %s is held", path)
		}
		if text := read(c.t, path); filepath.Ext(path) == ".json" && !json.Valid([]byte(text)) {
			return fmt.Errorf("%s is %q", path, text)
		}
		return nil
	})
}

// ring lists the keys, which proves that the token works, and says whether those that were there before are.
func (c *interrupted) ring() (now []plugin.Key, err error) {
	now, err = c.plugin.Keys(c.t.Context())
	if len(c.keys) == 0 && err != nil && strings.Contains(err.Error(), "empty") {
		return nil, nil
	}
	return now, err
}

func has(keys []plugin.Key, id string) bool {
	return slices.ContainsFunc(keys, func(k plugin.Key) bool { return k.KeyID == id })
}

func (c *interrupted) ringIsAsBefore(e ended) error {
	now, err := c.ring()
	if err == nil && len(now) != len(c.keys) {
		err = fmt.Errorf("the ring is %+v", now)
	}
	if e.byItself() && e.state.ExitCode() == 0 && c.args[0] == "serve" {
		if _, statErr := os.Lstat(c.plugin.Socket()); statErr == nil {
			err = errors.Join(err, errors.New("the socket is left"))
		}
	}
	return err
}

// keyIsTold: a key was made if and only if that was said. Nothing can be said after a SIGKILL.
func (c *interrupted) keyIsTold(e ended) error {
	now, err := c.ring()
	if err != nil {
		return err
	}
	var said plugin.Key
	_ = json.Unmarshal([]byte(e.out), &said) // "": nothing was said
	switch made := len(now) - len(c.keys); {
	case slices.ContainsFunc(c.keys, func(k plugin.Key) bool { return !has(now, k.KeyID) }):
		return fmt.Errorf("a key is gone: %+v", now)
	case said.State == "unknown":
	case said.ID != "" && (made != 1 || !slices.ContainsFunc(now, func(k plugin.Key) bool { return k.ID == said.ID })): // the key_id is not known of a key that was not looked at
		return fmt.Errorf("it said %s, and the ring is %+v", said.ID, now)
	case said.ID == "" && made != 0 && e.sig != unix.SIGKILL:
		return fmt.Errorf("it said nothing of the key that it made: %+v", now)
	}
	return nil
}

// destructionIsTold is the same for keys retire.
func (c *interrupted) destructionIsTold(e ended) error {
	now, err := c.ring()
	if err != nil {
		return err
	}
	var said struct{ Outcomes []struct{ Outcome string } }
	_ = json.Unmarshal([]byte(e.out), &said)
	destroyed := len(said.Outcomes) == 1 && said.Outcomes[0].Outcome == "destroyed"
	if there := has(now, c.args[2]); there == destroyed && (e.sig != unix.SIGKILL || destroyed) {
		return fmt.Errorf("the key is there: %t", there)
	}
	return nil
}

// bindingIsTold is the same for keys bind.
func (c *interrupted) bindingIsTold(e ended) error {
	table, err := c.plugin.Run(c.t.Context(), "keys", "list")
	if err != nil {
		return err
	}
	bound, said := bytes.Contains(table, []byte(cluster)), strings.Contains(e.out, `"bound"`)
	if bound != said && (e.sig != unix.SIGKILL || said) {
		return fmt.Errorf("the ring is bound: %t", bound)
	}
	return nil
}

// objectIsWhole: what etcd get was to write is there whole or not at all.
func (c *interrupted) objectIsWhole(e ended) error {
	text := read(c.t, c.to())
	_, statErr := os.Lstat(c.to())
	isWhole := strings.Contains(text, "kind: Secret") && strings.HasSuffix(text, "\n") && strings.Contains(text, "type: Opaque")
	if statErr == nil && !isWhole || e.byItself() && e.state.ExitCode() == 0 && !isWhole {
		return fmt.Errorf("the object is %q", text)
	}
	return c.ringIsAsBefore(e)
}
