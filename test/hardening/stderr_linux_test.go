package hardening

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// Nobody reads what the plugin logs, as with a journal whose disk hangs. It serves, its health checks and metrics answer, and
// it ends when it is asked to.
func TestStderrThatNobodyReads(t *testing.T) {
	t.Parallel()
	w := newRig(t, options{extra: "probeInterval: 1s"})
	w.plugin.Kill()
	reader, writer, err := proc.FullPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	defer writer.Close()
	cmd := exec.CommandContext(t.Context(), program, "serve", "--config", w.plugin.Config()) //nolint:gosec // our own
	cmd.Env, cmd.Stderr = append(os.Environ(), "SOFTHSM2_CONF="+w.token.Conf()), writer
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	eventually(t, func() error { return once(w.within(3*time.Second), w.client()) })
	for range 3 {
		for _, path := range []string{"/livez", "/readyz", "/metrics"} {
			if _, err := get(w.within(3*time.Second), "http://"+w.http+path); err != nil {
				t.Error(err)
			}
		}
		if err := once(w.within(3*time.Second), w.client()); err != nil {
			t.Error(err)
		}
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("it does not end")
	}
}
