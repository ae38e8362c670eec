package worker_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/hsm/worker"
)

// A worker in which any other call hangs is ended at once, and one that destroys a key only when that call has returned.
func TestEndNow(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.giveKey()
	c, _, _ := r.connected()
	release := r.module.Hang("C_OpenSession")
	if _, err := c.For(t.Context(), 10*time.Millisecond).OpenSession(r.slot(c), false); !errors.Is(err, p11.ErrOverdue) {
		t.Fatal(err)
	}
	if !c.EndNow(t.Context()) {
		t.Error("it has not ended")
	}
	release()

	c, s, key := r.connected()
	release = r.module.Hang("C_DestroyObject")
	if err := c.For(t.Context(), 10*time.Millisecond).DestroyObject(s, key); !errors.Is(err, p11.ErrOverdue) {
		t.Fatal(err)
	}
	if err := r.module.WaitHung(t.Context(), "C_DestroyObject", 1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if c.EndNow(ctx) {
		t.Error("it was ended inside C_DestroyObject")
	}
	release()
	if !c.EndNow(t.Context()) {
		t.Error("it has not ended")
	}
}

// A request is not begun when its program has ended, although the worker goes on for a call that it is in.
func TestNothingBeginsWithoutProgram(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	release := r.module.Hang("C_Login")
	defer release()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), starterMark+"="+r.module.Path(), starterPIN+"="+r.token.PINFile)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "<nil>\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := r.module.WaitHung(t.Context(), "C_Login", 1); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	release()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := r.module.WaitAlone(ctx); err != nil {
		t.Error(err)
	}
	if n := r.module.Calls("C_DestroyObject"); n != 0 {
		t.Errorf("C_DestroyObject was begun %d times", n)
	}
}

// starterPIN is the PIN file with which the starter logs in, and asks meanwhile that an object be destroyed.
const starterPIN = "HSM_KMS_TEST_STARTER_PIN"

// queue asks for a login that hangs and, behind it, for a destruction.
func queue(c *worker.Client, pinFile string) error {
	file, err := pinfile.Stat(pinFile, pinfile.Rules{})
	if err != nil {
		return err
	}
	slots, err := c.Slots()
	if err != nil {
		return err
	}
	s, err := c.OpenSession(slots[0], true)
	if err != nil {
		return err
	}
	wait := c.For(context.Background(), 300*time.Millisecond)
	if err := wait.Login(s, file); !errors.Is(err, p11.ErrOverdue) {
		return errors.Join(errors.New("the login does not hang"), err)
	}
	if err := wait.DestroyObject(s, 1); !errors.Is(err, p11.ErrOverdue) {
		return errors.Join(errors.New("the destruction does not wait"), err)
	}
	return nil
}
