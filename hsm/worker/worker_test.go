package worker_test

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/hsm/p11/p11test"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/hsm/worker"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/testworker"
)

func TestMain(m *testing.M) {
	if module := os.Getenv(starterMark); module != "" {
		starter(module)
	}
	testworker.MoreAtOnce()
	code := testworker.Run(m)
	made, _ := madeTokens()
	_ = os.RemoveAll(made.dir)
	os.Exit(code)
}

const (
	starterMark  = "HSM_KMS_TEST_STARTER"
	starterLimit = "HSM_KMS_TEST_STARTER_LIMIT" // its worker's connectTimeout
)

// starter is a program with one worker, which waits to be killed.
func starter(module string) {
	env, _ := worker.Environment(os.Environ(), nil)
	if debug := os.Getenv("GODEBUG"); debug != "" {
		env = append(env, "GODEBUG="+debug)
	}
	limit, err := time.ParseDuration(cmp.Or(os.Getenv(starterLimit), "10s"))
	if err != nil {
		panic(err)
	}
	c, err := worker.Start(context.Background(), worker.Config{
		Token: "hsm-a", Module: module, Environment: env, ConnectTimeout: limit,
		Hook: func(string, p11.RV, time.Duration) {}, Log: slog.New(slog.DiscardHandler),
	})
	if err == nil {
		err = c.Initialize()
	}
	if pinFile := os.Getenv(starterPIN); err == nil && pinFile != "" {
		err = queue(c, pinFile)
	}
	fmt.Println(err)
	select {}
}

// However a program ends, its worker ends too, in good order, and no descriptor of it keeps another worker alive.
func TestProgramKilled(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var programs []*exec.Cmd
	for range 4 { // started together: a descriptor that one inherits from another would keep both
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), starterMark+"="+r.module.Path())
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		programs = append(programs, cmd)
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "<nil>\n" {
			t.Fatalf("%q, %v", line, err)
		}
	}
	for _, program := range programs {
		if err := program.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = program.Wait() // killed
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := r.module.WaitCalls(ctx, "C_Finalize", len(programs)); err != nil {
		t.Error(err)
	}
	if err := r.module.WaitAlone(ctx); err != nil {
		t.Error(err)
	}
}

const (
	keyLabel = "ring"
	ckaID    = "an id"
)

// rig is a SoftHSM token behind a faulty module, and workers on it.
type rig struct {
	t      *testing.T
	token  *softhsm.Token
	module *faultp11.Module
	cfg    worker.Config
	log    *lines
	calls  *calls
}

// tokens are what every rig gets a copy of: to initialise a token and to make a key on it starts three processes.
type tokens struct {
	dir            string
	empty, withKey *softhsm.Token // the same token, without a key and with that of the contract
}

// madeTokens makes them once. TestMain removes the folder.
var madeTokens = sync.OnceValues(func() (made tokens, err error) {
	if made.dir, err = os.MkdirTemp("", "worker-tokens-"); err != nil {
		return made, err
	}
	if made.empty, err = softhsm.New(context.Background(), filepath.Join(made.dir, "empty"), "k8s", ""); err != nil {
		return made, err
	}
	if made.withKey, err = made.empty.CopyTo(filepath.Join(made.dir, "with-key")); err != nil {
		return made, err
	}
	env, _ := worker.Environment(os.Environ(), nil)
	c, err := worker.Start(context.Background(), worker.Config{
		Token: "hsm-a", Module: made.empty.Module, Environment: append(env, made.withKey.Env()...), ConnectTimeout: 20 * time.Second,
		Hook: func(string, p11.RV, time.Duration) {}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return made, err
	}
	defer c.End()
	return made, makeKey(c, made.withKey)
})

func newRig(t *testing.T) *rig {
	t.Helper()
	made, err := madeTokens()
	if err != nil {
		t.Fatal(err)
	}
	token, err := made.empty.CopyTo(filepath.Join(t.TempDir(), "softhsm"))
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, token: token, log: &lines{}, calls: &calls{seen: map[string]int{}}}
	r.module = faultp11.New(t, r.token.Module, faultp11.Options{SoftHSMConf: r.token.Conf()})
	env, _ := worker.Environment(os.Environ(), nil)
	r.cfg = worker.Config{
		Token: "hsm-a", Module: r.module.Path(), Environment: env, ConnectTimeout: 10 * time.Second, Generation: 7,
		Hook: r.calls.note, Log: slog.New(slog.NewTextHandler(r.log, nil)),
	}
	return r
}

func (r *rig) start() *worker.Client {
	r.t.Helper()
	c, err := worker.Start(r.t.Context(), r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(c.End)
	return c
}

// giveKey puts the key of the contract on the token, before a worker has it open.
func (r *rig) giveKey() {
	r.t.Helper()
	made, err := madeTokens()
	if err == nil {
		err = made.withKey.CopyNew(r.token)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// makeKey makes the key of the contract, through a worker of its own.
func (r *rig) makeKey() {
	r.t.Helper()
	c := r.start()
	defer c.End()
	if err := makeKey(c, r.token); err != nil {
		r.t.Fatal(err)
	}
}

func makeKey(c *worker.Client, token *softhsm.Token) error {
	file, err := pinfile.Stat(token.PINFile, pinfile.Rules{})
	if err != nil {
		return err
	}
	if err := c.Initialize(); err != nil {
		return err
	}
	slot, err := slotOf(c)
	if err != nil {
		return err
	}
	if err := c.OpenMaker(slot, &file); err != nil {
		return err
	}
	attribute := func(kind uint, value any) pkcs11.Attribute { return *pkcs11.NewAttribute(kind, value) }
	return c.Make(worker.Secret{Attributes: []pkcs11.Attribute{
		attribute(pkcs11.CKA_LABEL, keyLabel), attribute(pkcs11.CKA_ID, ckaID), attribute(pkcs11.CKA_TOKEN, true),
		attribute(pkcs11.CKA_SENSITIVE, true), attribute(pkcs11.CKA_EXTRACTABLE, false),
		attribute(pkcs11.CKA_ENCRYPT, true), attribute(pkcs11.CKA_DECRYPT, true), attribute(pkcs11.CKA_SIGN, false),
		attribute(pkcs11.CKA_VERIFY, false),
	}})
}

func (r *rig) slot(api p11.API) uint {
	r.t.Helper()
	slot, err := slotOf(api)
	if err != nil {
		r.t.Fatal(err)
	}
	return slot
}

func slotOf(api p11.API) (uint, error) {
	slots, err := api.Slots()
	if err != nil {
		return 0, err
	}
	for _, slot := range slots {
		if info, err := api.TokenInfo(slot); err == nil && info.Label == "k8s" {
			return slot, nil
		}
	}
	return 0, errors.New("no token")
}

// connected is a worker that is logged in, a session and the key.
func (r *rig) connected() (*worker.Client, p11.Session, p11.Object) {
	r.t.Helper()
	c := r.start()
	file, err := pinfile.Stat(r.token.PINFile, pinfile.Rules{})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := c.Initialize(); err != nil {
		r.t.Fatal(err)
	}
	s, err := c.OpenSession(r.slot(c), false)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := c.Login(s, file); err != nil {
		r.t.Fatal(err)
	}
	found, err := c.FindSecretKeys(s, keyLabel, 2)
	if err != nil || len(found) != 1 {
		r.t.Fatalf("found %v, %v", found, err)
	}
	return c, s, found[0]
}

func seal(c *worker.Client, until time.Time, s p11.Session, key p11.Object) error {
	_, err := c.EncryptGCM(until, s, key, []byte("twelve bytes"), []byte("associated"), []byte("a DEK"))
	return err
}

// One contract for the library in process and the client of a worker.
func TestContract(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		open func(*testing.T, *rig) p11.API
	}{
		{"library", func(t *testing.T, r *rig) p11.API {
			library, err := p11.Load(r.module.Path(), "")
			if err != nil {
				t.Fatal(err)
			}
			resume := softhsm.NoForks()
			t.Cleanup(func() {
				_ = library.Finalize()
				resume()
			})
			return library
		}},
		{"worker", func(_ *testing.T, r *rig) p11.API { return r.start() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.makeKey()
			p11test.Run(t, p11test.Subject{
				API: test.open(t, r), PINFile: r.token.PINFile, TokenName: "k8s", Label: keyLabel, CKAID: []byte(ckaID),
			})
			if n := r.module.OpenSessions(); n != 0 {
				t.Errorf("%d sessions are left open", n)
			}
		})
	}
}

// A call that hangs is overdue in time, keeps its session until it returns, and costs nothing else.
func TestOverdue(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.giveKey()
	c, s, key := r.connected()
	release := r.module.Hang("C_Encrypt")
	start := time.Now()
	if err := seal(c, start.Add(50*time.Millisecond), s, key); !errors.Is(err, p11.ErrOverdue) || time.Since(start) > 5*time.Second {
		t.Fatalf("%v after %s", err, time.Since(start))
	}
	if n, _ := c.Hanging(0); n != 1 {
		t.Errorf("%d calls hang", n)
	}
	err := seal(c, time.Time{}, s, key)
	overdue, ok := errors.AsType[*p11.Overdue](err)
	if !ok {
		t.Fatalf("a session that is busy: %v", err)
	}
	if _, err := c.TokenInfo(r.slot(c)); err != nil {
		t.Errorf("beside a call that hangs: %v", err)
	}
	release()
	<-overdue.Returned
	if n, _ := c.Hanging(0); n != 0 {
		t.Errorf("%d calls hang after all have returned", n)
	}
	if err := seal(c, time.Time{}, s, key); err != nil {
		t.Errorf("after it has returned: %v", err)
	}
}

// The same for calls that are no operation of a session, and for C_OpenSession, whose session is closed when it comes late.
func TestOverdueControl(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.giveKey()
	c, s, key := r.connected()
	release := r.module.Hang("C_FindObjects")
	if _, err := c.For(t.Context(), 50*time.Millisecond).FindSecretKeys(s, keyLabel, 1); !errors.Is(err, p11.ErrOverdue) {
		t.Errorf("C_FindObjects: %v", err)
	}
	if _, err := c.For(t.Context(), time.Minute).TokenInfo(r.slot(c)); err != nil {
		t.Errorf("beside a control request that hangs: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	other, err := c.OpenSession(r.slot(c), false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.For(ctx, time.Minute).FindSecretKeys(other, keyLabel, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that goes: %v", err)
	}
	release()
	open := r.module.OpenSessions()
	release = r.module.Hang("C_OpenSession")
	_, err = c.For(t.Context(), 50*time.Millisecond).OpenSession(r.slot(c), false)
	overdue, ok := errors.AsType[*p11.Overdue](err)
	if !ok {
		t.Fatalf("C_OpenSession: %v", err)
	}
	closed := r.module.Calls("C_CloseSession")
	releaseClose := r.module.Hang("C_CloseSession")
	release()
	if err := r.module.WaitHung(t.Context(), "C_CloseSession", 1); err != nil {
		t.Fatal(err)
	}
	select {
	case <-overdue.Returned:
		t.Error("it has returned, and its session is still open")
	default:
	}
	releaseClose()
	<-overdue.Returned
	if err := r.module.WaitCalls(t.Context(), "C_CloseSession", closed+1); err != nil {
		t.Fatal(err)
	}
	if err := r.module.WaitIdle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := r.module.OpenSessions(); n != open {
		t.Errorf("%d sessions are open, %d were", n, open)
	}
	if err := seal(c, time.Time{}, s, key); err != nil {
		t.Error(err)
	}
}

// Whatever ends a worker ends the calls in it, and is told.
func TestDeath(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		death faultp11.Death
		says  string
	}{
		{"segfault", faultp11.Segfault, "signal: segmentation fault"},
		{"abort", faultp11.Abort, "signal: aborted"},
		{"exit", faultp11.Exit, "exit status 3"},
		{"heap smash", faultp11.HeapSmash, "signal: aborted"},
	} {
		death, says := test.death, test.says
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.giveKey()
			c, s, key := r.connected()
			r.module.Die("C_Encrypt", death).Once()
			if err := seal(c, time.Time{}, s, key); !errors.Is(err, p11.ErrEnded) || !strings.Contains(err.Error(), says) {
				t.Errorf("the call in which it died: %v", err)
			}
			if _, err := c.Slots(); !errors.Is(err, p11.ErrEnded) {
				t.Errorf("a later call: %v", err)
			}
			if err := seal(c, time.Time{}, s, key); !errors.Is(err, p11.ErrEnded) {
				t.Errorf("a later call on its session: %v", err)
			}
			if log := r.log.String(); !strings.Contains(log, says) || !strings.Contains(log, "C_Encrypt") {
				t.Errorf("log: %s", log)
			}
		})
	}
}

// A worker in which a call hangs is ended all the same, and one in which none hangs leaves no session.
func TestEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.giveKey()
	c, _, _ := r.connected()
	finalized := r.module.Calls("C_Finalize")
	c.End()
	if n := r.module.Calls("C_Finalize") - finalized; n != 1 {
		t.Errorf("an idle worker was ended with %d C_Finalize", n)
	}
	c, s, key := r.connected()
	release := r.module.Hang("C_Encrypt")
	defer release()
	_ = seal(c, time.Now().Add(10*time.Millisecond), s, key)
	c.End()
	if n := r.module.Calls("C_Finalize") - finalized; n != 1 {
		t.Error("C_Finalize was called under a call")
	}
	if n := r.module.OpenSessions(); n != 0 {
		t.Errorf("%d sessions", n)
	}
}

// hangingLogin returns a session in which a C_Login hangs, the PIN file of it, and what lets it go on.
func (r *rig) hangingLogin(c *worker.Client) (s p11.Session, file pinfile.Identity, release func()) {
	r.t.Helper()
	file, err := pinfile.Stat(r.token.PINFile, pinfile.Rules{})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := c.Initialize(); err != nil {
		r.t.Fatal(err)
	}
	if s, err = c.OpenSession(r.slot(c), false); err != nil {
		r.t.Fatal(err)
	}
	release = r.module.Hang("C_Login")
	go func() { _ = c.Login(s, file) }()
	if err := r.module.WaitHung(r.t.Context(), "C_Login", 1); err != nil {
		r.t.Fatal(err)
	}
	return s, file, release
}

// No worker is killed inside C_Login, however much it is to end.
func TestEndWaitsForLogin(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.start()
	_, _, release := r.hangingLogin(c)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.End()
	}()
	select {
	case <-ended:
		t.Error("it was ended inside C_Login")
	case <-time.After(500 * time.Millisecond):
	}
	release()
	<-ended
	if n := r.module.Logins(); n != 1 {
		t.Errorf("%d logins", n)
	}
}

// A program that may end at any moment waits for the login of a worker first, and keeps it from another.
func TestHold(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var group worker.Group
	r.cfg.Group = &group
	c := r.start()
	s, file, release := r.hangingLogin(c)
	held := make(chan struct{})
	go func() {
		defer close(held)
		group.Hold()
	}()
	select {
	case <-held:
		t.Error("a login is under way")
	case <-time.After(200 * time.Millisecond):
	}
	release()
	<-held
	calls := r.module.Calls("C_Login")
	if err := c.For(t.Context(), 200*time.Millisecond).Login(s, file); !errors.Is(err, p11.ErrOverdue) || r.module.Calls("C_Login") != calls {
		t.Errorf("a login while the lock is held: %v", err)
	}
}

// A worker does not run by hand, nor with a descriptor that it does not know.
func TestWorkerRefuses(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0], worker.Command, "by hand")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "running as a worker") {
		t.Errorf("by hand: %v, %s", err, out)
	}
	extra, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer extra.Close()
	cmd = exec.CommandContext(t.Context(), os.Args[0], worker.Command, "with a descriptor")
	cmd.ExtraFiles = []*os.File{extra, extra, extra, extra}
	out, err = cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "descriptor 6 was inherited") {
		t.Errorf("with an unknown descriptor: %v, %s", err, out)
	}
}

func TestEnvironment(t *testing.T) {
	t.Parallel()
	env, unlisted := worker.Environment([]string{
		"PATH=/bin", "SOFTHSM2_CONF=/c", "LC_ALL=C", "NOTIFY_SOCKET=/run", "LISTEN_FDS=1", "GODEBUG=x=1", "GOMAXPROCS=1",
		"WATCHDOG_USEC=1", "VENDOR_CONF=/v", "MINE_A=1", "=odd", "ANOTHER=1",
	}, []string{"MINE_*"})
	if want := []string{"PATH=/bin", "SOFTHSM2_CONF=/c", "LC_ALL=C", "VENDOR_CONF=/v", "MINE_A=1", "=odd", "ANOTHER=1"}; !slices.Equal(env, want) {
		t.Errorf("env %q", env)
	}
	if want := []string{"", "ANOTHER", "VENDOR_CONF"}; !slices.Equal(unlisted, want) {
		t.Errorf("unlisted %q", unlisted)
	}
}

// Output of the library is read to its end, and logged within bounds.
func TestOutputIsBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if err := os.Remove(r.module.Path() + ".conf"); err != nil { // it then complains on standard error
		t.Fatal(err)
	}
	c := r.start()
	for range 100 {
		_ = c.Initialize()
	}
	c.End()
	if n := strings.Count(r.log.String(), "the PKCS#11 module prints"); n < 1 || n > 40 {
		t.Errorf("%d lines: %s", n, r.log)
	}
}

// lines collects a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// calls counts what the hook was told.
type calls struct {
	mu   sync.Mutex
	seen map[string]int
}

func (c *calls) note(function string, _ p11.RV, _ time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen[function]++
}
