package faultp11_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// Two instances in one process see two tokens, and neither's faults or C_Finalize touch the other.
func TestTwoInstances(t *testing.T) {
	t.Parallel()
	a, pinA := newModule(t, faultp11.Options{})
	b, pinB := newModule(t, faultp11.Options{})
	ca, cb := connect(t, a.Path(), pinA), connect(t, b.Path(), pinB)
	infoA, errA := ca.GetTokenInfo(ca.slot)
	infoB, errB := cb.GetTokenInfo(cb.slot)
	if errA != nil || errB != nil || infoA.SerialNumber == infoB.SerialNumber {
		t.Fatalf("serials %q, %v and %q, %v: want two tokens", infoA.SerialNumber, errA, infoB.SerialNumber, errB)
	}
	a.FailAll(pkcs11.CKR_DEVICE_REMOVED).UntilCleared()
	_, err := ca.seal(ca.session, []byte("x"))
	wantCode(t, err, pkcs11.CKR_DEVICE_REMOVED)
	cb.roundTrip(t, cb.session)
	a.Clear()
	a.DropSessions()
	cb.roundTrip(t, cb.session)
	sealed, err := cb.seal(cb.session, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // the other's life cycle, over and over
		if err := ca.Finalize(); err != nil {
			t.Fatal(err)
		}
		cb.roundTrip(t, cb.session)
		if err := ca.Initialize(); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := cb.unseal(cb.session, sealed); err != nil || string(got) != "x" {
		t.Errorf("got %q, %v", got, err)
	}
	wantCount(t, "initialisations of a", a.Calls("C_Initialize"), 4)
	wantCount(t, "initialisations of b", b.Calls("C_Initialize"), 1)
}

// A link to the file is the same instance, and finds the settings beside the file.
func TestLinkIsSameInstance(t *testing.T) {
	t.Parallel()
	m, _ := newModule(t, faultp11.Options{})
	link := filepath.Join(t.TempDir(), "link.so")
	if err := os.Symlink(m.Path(), link); err != nil {
		t.Fatal(err)
	}
	load(t, link)
	ctx := pkcs11.New(m.Path())
	wantCode(t, ctx.Initialize(), pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)
	wantCount(t, "initialisations", m.Calls("C_Initialize"), 2)
}

func TestWithoutSettings(t *testing.T) {
	t.Parallel()
	m, _ := newModule(t, faultp11.Options{})
	if err := os.Remove(m.Path() + ".conf"); err != nil {
		t.Fatal(err)
	}
	ctx := pkcs11.New(m.Path())
	wantCode(t, ctx.Initialize(), pkcs11.CKR_GENERAL_ERROR)
	_, err := ctx.GetSlotList(true)
	wantCode(t, err, pkcs11.CKR_GENERAL_ERROR)
}

func TestOpenRefusesOtherFiles(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "control")
	if _, err := faultp11.Create(path); err != nil {
		t.Fatal(err)
	}
	if _, err := faultp11.Create(path); err == nil {
		t.Error("Create over a control file: no error")
	}
	zeros := filepath.Join(t.TempDir(), "zeros")
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range [][]byte{nil, make([]byte, st.Size())} {
		if err := os.WriteFile(zeros, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := faultp11.Open(zeros); err == nil || !strings.Contains(err.Error(), "not a control file") {
			t.Errorf("%d zeros: got %v", len(data), err)
		}
	}
}

// The module runs in children, named by the environment; this process only has the control file. One is killed while
// it hangs, beside another that goes on: what the first had no longer counts, and what the second has still does.
func TestOtherProcess(t *testing.T) {
	t.Parallel()
	if os.Getenv("FAULTP11_TEST_PIN") != "" {
		child(t)
		return
	}
	token := softhsm.ForTest(t, "faulty")
	pin, err := token.PIN()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "control")
	if _, err := faultp11.Create(path); err != nil {
		t.Fatal(err)
	}
	control, err := faultp11.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	start := func() *exec.Cmd {
		cmd := exec.CommandContext(soon(t), os.Args[0], "-test.run=^TestOtherProcess$")
		cmd.Env = append(os.Environ(), token.Env()...)
		cmd.Env = append(cmd.Env, "FAULTP11_MODULE="+token.Module, "FAULTP11_CONTROL="+path,
			"FAULTP11_TEST_SO="+faultp11.Build(t), "FAULTP11_TEST_PIN="+pin)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	release := control.Hang("C_EncryptInit")
	first := start()
	if err := control.WaitHung(soon(t), "C_EncryptInit", 1); err != nil {
		t.Fatal(err)
	}
	second := start()
	if err := control.WaitHung(soon(t), "C_EncryptInit", 2); err != nil {
		t.Fatal(err)
	}
	wantCount(t, "open sessions of two processes", control.OpenSessions(), 2)
	control.MaxSessions(2)
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	wantCount(t, "hung calls after a kill", control.Hung("C_EncryptInit"), 1)
	wantCount(t, "open sessions after a kill", control.OpenSessions(), 1)
	wantCount(t, "calls in flight after a kill", control.InFlight(), 1)
	release()
	if err := second.Wait(); err != nil {
		t.Errorf("second child: %v", err)
	}
	wantCount(t, "open sessions at the end", control.OpenSessions(), 0)
}

// Each death ends the process that makes the call, and nothing else.
func TestDie(t *testing.T) {
	t.Parallel()
	for death, want := range map[faultp11.Death]string{
		faultp11.Segfault: "", faultp11.Abort: "", faultp11.Exit: "exit status 3", faultp11.HeapSmash: "",
	} {
		token := softhsm.ForTest(t, "faulty")
		pin, err := token.PIN()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "control")
		control, err := faultp11.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		control.Die("C_EncryptInit", death).Once()
		cmd := exec.CommandContext(soon(t), os.Args[0], "-test.run=^TestOtherProcess$")
		cmd.Env = append(os.Environ(), token.Env()...)
		cmd.Env = append(cmd.Env, "FAULTP11_MODULE="+token.Module, "FAULTP11_CONTROL="+path,
			"FAULTP11_TEST_SO="+faultp11.Build(t), "FAULTP11_TEST_PIN="+pin)
		if err := cmd.Run(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("death %d: %v", death, err)
		}
		wantCount(t, "deaths", control.Injected("C_EncryptInit"), 1)
		wantCount(t, "open sessions of the dead", control.OpenSessions(), 0)
	}
}

func child(t *testing.T) {
	c := connect(t, os.Getenv("FAULTP11_TEST_SO"), os.Getenv("FAULTP11_TEST_PIN"))
	c.roundTrip(t, c.session)
}

// Instances that initialise at the same moment do not read each other's SOFTHSM2_CONF.
func TestInitializeTogether(t *testing.T) {
	t.Parallel()
	errs := make(chan error)
	for range 2 {
		m, pin := newModule(t, faultp11.Options{})
		c := connect(t, m.Path(), pin)
		info, err := c.GetTokenInfo(c.slot)
		if err != nil {
			t.Fatal(err)
		}
		go func() { errs <- c.restart(info.SerialNumber, 150) }()
	}
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// restart finalises and initialises the module n times and sees the token with this serial number every time.
func (c *client) restart(serial string, n int) error {
	for i := range n {
		if err := errors.Join(c.Finalize(), c.Initialize()); err != nil {
			return fmt.Errorf("restart %d: %w", i, err)
		}
		info, err := c.GetTokenInfo(c.slot)
		if err != nil || info.SerialNumber != serial {
			return fmt.Errorf("restart %d: token %q, %w; want %q", i, info.SerialNumber, err, serial)
		}
	}
	return nil
}
