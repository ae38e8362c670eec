package hsm_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/testworker"
)

// The matrix: each PKCS#11 call that an act makes x each fault x what is told x what is true on the token when all has
// ended. The act runs in a process of its own, which goes on after it has told its outcome, so that what it abandoned can
// still do harm.

// errand is what such a process does.
type errand struct {
	StateDir string
	Token    hsm.TokenConfig
	Act      string // destroy, generate or bind
	CKAID    []byte // generate
	KeyID    string // destroy
}

// told is what it says of it.
type told struct {
	Outcome hsm.Outcome
	Err     string
}

const errandMark = "HSM_KMS_TEST_ACT"

func TestMain(m *testing.M) {
	text := os.Getenv(errandMark)
	if text == "" {
		testworker.MoreAtOnce()
		code := testworker.Run(m)
		made, _ := madeTokens()
		_ = os.RemoveAll(made.dir)
		os.Exit(code)
	}
	var e errand
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		panic(err)
	}
	if err := e.do(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// do connects, says so, waits until it is told to go on, acts, tells the outcome, and lives until its input ends. A line
// meanwhile interrupts the act.
func (e errand) do() error {
	ctx, interrupt := context.WithCancel(context.Background())
	defer interrupt()
	common := hsm.Config{Ring: ringName, Profile: envelope.AESGCM, StateDir: e.StateDir, Log: slog.New(slog.DiscardHandler)}
	act := func() (hsm.Outcome, error) {
		made, err := hsm.Generate(ctx, common, e.Token, e.CKAID)
		return made.Outcome, err
	}
	if e.Act != "generate" {
		set := hsm.Open(common, []hsm.TokenConfig{e.Token})
		set.Start(ctx)
		for set.Problem() != nil { // the time-out is short, and the machine may be busy
			time.Sleep(time.Millisecond)
		}
		act = func() (hsm.Outcome, error) {
			if e.Act == "bind" {
				all, err := set.Bind(ctx, clusterA)
				if err != nil || len(all) == 0 {
					return hsm.NotMade, cmp.Or(err, errors.New("nothing was told"))
				}
				return all[0].Outcome, all[0].Err
			}
			id, err := envelope.ParseKeyID(e.KeyID)
			if err != nil {
				return "", err
			}
			all, err := set.Destroy(ctx, id)
			if len(all) == 0 {
				return "", cmp.Or(err, errors.New("nothing was told"))
			}
			return all[0].Outcome, err
		}
	}
	in := bufio.NewReader(os.Stdin)
	fmt.Println("ready")
	if _, err := in.ReadString('\n'); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for _, err := in.ReadString('\n'); err == nil; _, err = in.ReadString('\n') {
			interrupt()
		}
	}()
	var t told
	var err error
	if t.Outcome, err = act(); err != nil {
		t.Err = err.Error()
	}
	if err := json.NewEncoder(os.Stdout).Encode(t); err != nil {
		return err
	}
	<-ended
	return nil
}

// actor is that process, from outside.
type actor struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	err bytes.Buffer
}

func startActor(t *testing.T, e errand) *actor {
	t.Helper()
	text, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	a := &actor{cmd: exec.CommandContext(ctx, os.Args[0])} //nolint:gosec // ourselves
	a.cmd.Env = append(os.Environ(), errandMark+"="+string(text), "GORACE=atexit_sleep_ms=0")
	a.cmd.Stderr = &a.err
	if a.in, err = a.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	a.out = bufio.NewReader(out)
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := a.out.ReadString('\n'); line != "ready\n" {
		t.Fatalf("the acting process said %q, %v: %s", line, err, a.err.String())
	}
	return a
}

// goOn has it act; again, it interrupts the act.
func (a *actor) goOn(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(a.in, "go\n"); err != nil {
		t.Fatal(err)
	}
}

// answer is what an actor told, once.
type answer struct {
	told told
	line string
	err  error
}

// answers gets what the actor tells next.
func (a *actor) answers() chan answer {
	answers := make(chan answer, 1)
	go func() {
		var said answer
		said.line, said.err = a.out.ReadString('\n')
		if said.err == nil {
			said.err = json.Unmarshal([]byte(said.line), &said.told)
		}
		answers <- said
	}()
	return answers
}

func (a *actor) told(t *testing.T, answers chan answer) told {
	t.Helper()
	said := <-answers
	if said.err != nil {
		t.Fatalf("the acting process said %q, %v: %s", said.line, said.err, a.err.String())
	}
	return said.told
}

// end lets it end and looks for what the race detector said.
func (a *actor) end(t *testing.T) {
	t.Helper()
	_ = a.in.Close()
	if err := a.cmd.Wait(); err != nil || strings.Contains(a.err.String(), "DATA RACE") {
		t.Errorf("the acting process ended with %v: %s", err, a.err.String())
	}
}

// matrix is one act on copies of one token.
type matrix struct {
	t       *testing.T
	act     string
	base    *bench
	done    hsm.Outcome // told when it is done
	not     hsm.Outcome
	call    string // that cannot be taken back
	pending envelope.KeyID

	mu    sync.Mutex
	cells map[string]map[string]int // by fault: how often was told and true what
	rows  [][]string
}

// actTimeout is the time-out where a fault lasts longer than it; elsewhere nothing is to run out of time.
const (
	actTimeout  = 300 * time.Millisecond
	longTimeout = 5 * time.Second
)

// takes chooses what is tried. With HSM_KMS_MATRIX=full every call meets every fault. Otherwise a run is to take seconds:
// the call that cannot be taken back meets all, the first and the last call of another function meet one, in turn, and those
// that open and close sessions hang each, because nobody can look through that worker then.
func (x *matrix) takes(fn string, n, of int, f actFault, turn int) bool {
	session := fn == "C_OpenSession" || fn == "C_CloseSession"
	switch {
	case os.Getenv("HSM_KMS_MATRIX") == "full", fn == x.call:
		return true
	case f.last:
		return false
	case session && f.name == "hangs":
		return true
	}
	return (n == 0 || n == of-1) && everyCall[turn%len(everyCall)] == f.name
}

// everyCall are the faults that are not of the call alone that cannot be taken back.
var everyCall = []string{"fails", "done, and fails", "late", "hangs", "interrupted", "killed before"}

// actFault is one kind of fault. A call that hangs or is killed when it has done its work is much like the next one
// that does so before: that alone is taken, but for the call that cannot be taken back.
type actFault struct {
	name string
	plan func(m *faultp11.Module, fn string, n int) *faultp11.Plan
	last bool // only of the call that cannot be taken back
	kill bool
	stop bool // the act is interrupted
	slow bool // it lasts longer than the time-out
}

// actFaults: of the codes, one call meets one, in turn.
func actFaults() []actFault {
	codes := []uint{pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_SESSION_HANDLE_INVALID}
	late := map[string]time.Duration{"C_GenerateKey": 8 * actTimeout, "C_Login": 8 * actTimeout} // crypto11 has more time for these
	return []actFault{
		{name: "fails", plan: func(m *faultp11.Module, fn string, n int) *faultp11.Plan { return m.Fail(fn, codes[n%len(codes)]) }},
		{name: "done, and fails", plan: func(m *faultp11.Module, fn string, n int) *faultp11.Plan {
			return m.FailAfter(fn, codes[(n+1)%len(codes)])
		}},
		{name: "late", plan: func(m *faultp11.Module, fn string, _ int) *faultp11.Plan {
			return m.DelayCall(fn, max(late[fn], 3*actTimeout/2))
		}, slow: true},
		{name: "hangs", plan: func(m *faultp11.Module, fn string, _ int) *faultp11.Plan { return m.HangCall(fn) }, slow: true},
		{name: "done, and hangs", plan: func(m *faultp11.Module, fn string, _ int) *faultp11.Plan { return m.HangCallAfter(fn) }, last: true, slow: true},
		{name: "interrupted", plan: func(m *faultp11.Module, fn string, _ int) *faultp11.Plan { return m.HangCall(fn) }, stop: true, slow: true},
		{name: "killed before", plan: func(m *faultp11.Module, fn string, _ int) *faultp11.Plan { return m.HangCall(fn) }, kill: true},
		{name: "killed after", plan: func(m *faultp11.Module, fn string, _ int) *faultp11.Plan { return m.HangCallAfter(fn) }, last: true, kill: true},
	}
}

// actCase is one token of its own with one fault.
type actCase struct {
	*bench
	errand errand
}

func (x *matrix) newCase(t *testing.T, timeout time.Duration) *actCase {
	t.Helper()
	token, err := x.base.token.CopyTo(filepath.Join(t.TempDir(), "token"))
	if err != nil {
		t.Fatal(err)
	}
	b := *x.base
	b.t, b.token, b.log = t, token, &logLines{}
	b.module = faultp11.New(t, token.Module, faultp11.Options{SoftHSMConf: token.Conf()})
	b.cfg.Module, b.cfg.PINFile, b.cfg.CallTimeout, b.cfg.ConnectTimeout = b.module.Path(), token.PINFile, timeout, 10*timeout
	b.common.StateDir = t.TempDir()
	c := &actCase{bench: &b, errand: errand{StateDir: b.common.StateDir, Token: b.cfg, Act: x.act, KeyID: x.pending.String()}}
	c.errand.CKAID = mustID(t)
	return c
}

// isDone is the truth: what another process sees, in which nothing fails. It has time, however busy the machine is.
func (x *matrix) isDone(c *actCase) bool {
	c.t.Helper()
	other := *c.bench
	other.cfg.CallTimeout, other.cfg.ConnectTimeout = 20*time.Second, time.Minute
	seen := other.another()
	if x.act == "bind" {
		uid, err := hsm.ClusterOf(seen.set.Bindings(c.t.Context()))
		if err != nil {
			c.t.Error(err)
		}
		return uid == clusterA
	}
	keys, err := seen.set.Keys(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	present := slices.ContainsFunc(keys, func(k envelope.Key) bool {
		return x.act == "destroy" && k.ID == x.pending || x.act == "generate" && bytes.Equal(k.CKAID, c.errand.CKAID)
	})
	return present == (x.act == "generate")
}

// record runs the act without any fault and counts its calls by function.
func (x *matrix) record() map[string]int {
	x.t.Helper()
	c := x.newCase(x.t, 20*time.Second)
	a := startActor(x.t, c.errand)
	c.module.ResetCounters()
	a.goOn(x.t)
	if said := a.told(x.t, a.answers()); said.Outcome != x.done || said.Err != "" {
		x.t.Fatalf("without any fault: %+v", said)
	}
	calls := map[string]int{}
	for _, fn := range faultp11.Functions() {
		if n := c.module.Calls(fn); n > 0 {
			calls[fn] = n
		}
	}
	a.end(x.t)
	if !x.isDone(c) || calls[x.call] == 0 {
		x.t.Fatalf("without any fault: told as done, and it is not: %v", calls)
	}
	return calls
}

// try lets one call meet one fault.
func (x *matrix) try(t *testing.T, f actFault, fn string, n int) {
	timeout := longTimeout
	if f.slow {
		timeout = actTimeout
	}
	c := x.newCase(t, timeout)
	a := startActor(t, c.errand)
	f.plan(c.module, fn, n).After(n).Once()
	a.goOn(t)
	var said told
	answers := a.answers()
	met := !(f.kill || f.stop) || c.meets(t, fn, answers)
	if f.stop && met {
		a.goOn(t)
	}
	if f.kill && met {
		_ = a.cmd.Process.Kill()
		_ = a.cmd.Wait()
		said.Outcome = "(killed)"
		begun := c.module.Calls(x.call)
		c.module.Clear()
		c.untilQuiet()
		if n := c.module.Calls(x.call) - begun; n != 0 {
			t.Errorf("%d calls of %s were begun after the program had ended", n, x.call)
		}
	} else {
		said = a.told(t, answers)
		c.module.Clear()
		c.untilQuiet()
		a.end(t)
	}
	is := x.isDone(c)
	x.note(f.name, fmt.Sprintf("%s %d", fn, n+1), said, is)
	switch {
	case said.Outcome == x.done && !is, said.Outcome == x.not && is:
		t.Errorf("a lie: told %q (%s), done: %v", said.Outcome, said.Err, is)
	case said.Outcome == "":
		t.Errorf("no outcome: %s", said.Err)
	case said.Outcome == hsm.Unknown && !((f.name == "hangs" || f.stop) && fn == x.call):
		t.Errorf("unknown, although the token can be looked at: %s", said.Err)
	case said.Outcome == x.done && said.Err != "", said.Outcome != x.done && said.Err == "" && !f.kill:
		t.Errorf("told %q with the error %q", said.Outcome, said.Err)
	}
	if f.kill && met {
		x.again(t, c, is)
	}
}

// meets waits until a call of fn hangs, and reports whether it does before the act ends. The sessions of a reading are
// closed in the background, some of them later than in the run without a fault.
func (c *actCase) meets(t *testing.T, fn string, answers chan answer) bool {
	t.Helper()
	hung := make(chan error, 1)
	ctx := c.within(20 * time.Second)
	go func() { hung <- c.module.WaitHung(ctx, fn, 1) }()
	select {
	case err := <-hung:
		if err != nil {
			t.Fatal(err)
		}
		return true
	case said := <-answers:
		answers <- said
		if fn != "C_CloseSession" {
			t.Errorf("the act ended without that call of %s", fn)
		}
		return false
	}
}

// again: after a kill the same command, in a new process, finds the truth and completes what was begun.
func (x *matrix) again(t *testing.T, c *actCase, is bool) {
	t.Helper()
	if x.act == "destroy" && is {
		return // nothing is left to do
	}
	c.errand.Token.CallTimeout = 20 * time.Second
	c.errand.CKAID = mustID(t)
	a := startActor(t, c.errand)
	a.goOn(t)
	if said := a.told(t, a.answers()); said.Outcome != x.done || said.Err != "" {
		t.Errorf("again: %+v", said)
	}
	a.end(t)
	if !x.isDone(c) {
		t.Error("again: told as done, and it is not")
	}
}

// untilQuiet waits until what the acting process abandoned has ended: no call is inside the module, and none was begun for
// a while.
func (c *actCase) untilQuiet() {
	c.t.Helper()
	ctx := c.within(20 * time.Second)
	for calls := -1; calls != c.module.TotalCalls(); {
		calls = c.module.TotalCalls()
		if err := c.module.WaitIdle(ctx); err != nil {
			c.t.Fatal(err)
		}
		select {
		case <-ctx.Done():
			c.t.Fatal(ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (x *matrix) note(fault, call string, said told, is bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	truth := "not done"
	if is {
		truth = "done"
	}
	cell := fmt.Sprintf("%s / %s", said.Outcome, truth)
	if x.cells[fault] == nil {
		x.cells[fault] = map[string]int{}
	}
	x.cells[fault][cell]++
	x.rows = append(x.rows, []string{call, fault, string(said.Outcome), truth})
}

// run fills the matrix, eight cases at a time: most of them wait.
func (x *matrix) run() {
	calls := x.record()
	free := make(chan struct{}, 8)
	var running sync.WaitGroup
	turn := 0
	for _, fn := range slices.Sorted(maps.Keys(calls)) {
		for n := range calls[fn] {
			turn++
			for _, f := range actFaults() {
				if !x.takes(fn, n, calls[fn], f, turn) {
					continue
				}
				free <- struct{}{}
				running.Go(func() {
					defer func() { <-free }()
					x.t.Run(fmt.Sprintf("%s %d %s", fn, n+1, f.name), func(t *testing.T) { x.try(t, f, fn, n) })
				})
			}
		}
	}
	running.Wait()
	x.print(calls)
}

func (x *matrix) print(calls map[string]int) {
	var text strings.Builder
	fmt.Fprintf(&text, "%s: %v\n", x.act, calls)
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "fault\ttold / true, how often")
	for _, f := range actFaults() {
		fmt.Fprint(w, f.name)
		for _, cell := range slices.Sorted(maps.Keys(x.cells[f.name])) {
			fmt.Fprintf(w, "\t%s: %d", cell, x.cells[f.name][cell])
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush()
	x.t.Log(text.String())
	slices.SortFunc(x.rows, slices.Compare)
	if path := os.Getenv("HSM_KMS_MATRIX_FILE"); path != "" {
		var all strings.Builder
		for _, row := range x.rows {
			fmt.Fprintln(&all, strings.Join(row, "\t"))
		}
		if err := os.WriteFile(path+"."+x.act, []byte(all.String()), 0o600); err != nil {
			x.t.Error(err)
		}
	}
}

func newMatrix(t *testing.T, act, call string, done, not hsm.Outcome) *matrix {
	t.Helper()
	if testing.Short() {
		t.Skip("make test runs it")
	}
	x := &matrix{t: t, act: act, call: call, done: done, not: not, cells: map[string]map[string]int{}}
	x.base = newBench(t, nil)
	x.base.generate(time.Now().Add(time.Hour))
	x.base.start()
	x.pending = x.base.ring.Advance().Versions[1].ID
	x.base.stop()
	return x
}

func TestMatrixOfDestroy(t *testing.T) {
	t.Parallel()
	newMatrix(t, "destroy", "C_DestroyObject", hsm.Destroyed, hsm.Kept).run()
}

func TestMatrixOfGenerate(t *testing.T) {
	t.Parallel()
	newMatrix(t, "generate", "C_GenerateKey", hsm.Made, hsm.NotMade).run()
}

func TestMatrixOfBind(t *testing.T) {
	t.Parallel()
	newMatrix(t, "bind", "C_CreateObject", hsm.Made, hsm.NotMade).run()
}
