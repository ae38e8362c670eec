//go:build e2e && linux

package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hsm-kms/hsm-kms/test/plugin"
)

// demonstration is a running demo with a temporary folder and a process group of its own.
type demonstration struct {
	cmd    *exec.Cmd
	out    *bufio.Reader
	seen   bytes.Buffer
	folder string
	before string // files of the checkout that git does not know, when it began
}

// untracked lists the files of the checkout that git neither has nor ignores; "" outside of a checkout.
func untracked(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "git", "-C", "../..", "ls-files", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Logf("NOT CHECKED: files left in the checkout: %v", err)
	}
	return string(out)
}

func startDemo(t *testing.T) *demonstration {
	t.Helper()
	bin, err := plugin.FindPrograms()
	if err != nil {
		t.Fatal(err)
	}
	folder, err := os.MkdirTemp("", "demo")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	program := filepath.Join(t.TempDir(), "demo")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../demo").CombinedOutput(); err != nil {
		t.Fatalf("building the demo: %v: %s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), program, "-bin", bin.HSMKMS) //nolint:gosec // ours
	cmd.Env = append(os.Environ(), "TMPDIR="+folder)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	before := untracked(t)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &demonstration{cmd: cmd, out: bufio.NewReader(stdout), folder: folder, before: before}
}

// until reads the demo's output up to a line that starts with text.
func (d *demonstration) until(t *testing.T, text string) {
	t.Helper()
	for {
		line, err := d.out.ReadString('\n')
		d.seen.WriteString(line)
		if err != nil {
			t.Fatalf("the demo ended without saying %q:\n%s", text, &d.seen)
		}
		if strings.HasPrefix(line, text) {
			return
		}
	}
}

// end reads the rest, waits and gives the exit code (-1 after a signal).
func (d *demonstration) end(t *testing.T) int {
	t.Helper()
	if _, err := io.Copy(&d.seen, d.out); err != nil {
		t.Error(err)
	}
	_ = d.cmd.Wait() // its exit code is looked at
	return d.cmd.ProcessState.ExitCode()
}

// processes lists whose command line names the demo's folder, as that of all its children does.
func (d *demonstration) processes(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil && bytes.Contains(data, []byte(d.folder)) {
			found = append(found, fmt.Sprintf("%s: %.100q", file, data))
		}
	}
	return strings.Join(found, "\n")
}

func (d *demonstration) checkNothingLeft(t *testing.T) {
	t.Helper()
	if left := d.processes(t); left != "" {
		t.Errorf("processes left behind:\n%s", left)
	}
	entries, err := os.ReadDir(d.folder)
	if err != nil || len(entries) != 0 {
		t.Errorf("files left behind: %v, %v", entries, err)
	}
	if left := untracked(t); left != d.before {
		t.Errorf("files left in the checkout:\n%s\nbefore it were\n%s", left, d.before)
	}
}

func TestDemo(t *testing.T) {
	t.Parallel()
	d := startDemo(t)
	d.until(t, "9. ")
	if d.processes(t) == "" {
		t.Error("no process of the demo is found while it runs: this test would see none that is left behind")
	}
	if code := d.end(t); code != 0 {
		t.Errorf("exit code %d:\n%s", code, &d.seen)
	}
	if !strings.Contains(d.seen.String(), "k8s:enc:kms:v2:") || !strings.Contains(d.seen.String(), "Done. What was shown:") {
		t.Errorf("the demo said:\n%s", &d.seen)
	}
	d.checkNothingLeft(t)
}

// Ctrl-C at any step ends with 130 and leaves neither process nor file. A terminal sends it to the whole group.
func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"1. ", "2. ", "3. ", "4. ", "5. ", "6. ", "8. ", "9. ", "10. "} {
		t.Run("step "+strings.Trim(step, ". "), func(t *testing.T) {
			t.Parallel()
			d := startDemo(t)
			d.until(t, step)
			for range 2 { // people press it twice
				if err := syscall.Kill(-d.cmd.Process.Pid, syscall.SIGINT); err != nil {
					t.Fatal(err)
				}
			}
			if code := d.end(t); code != 130 {
				t.Errorf("exit code %d, want 130:\n%s", code, &d.seen)
			}
			d.checkNothingLeft(t)
		})
	}
}

// Nobody can clean up after a SIGKILL, but no process may be left running.
func TestDemoKilled(t *testing.T) {
	t.Parallel()
	d := startDemo(t)
	d.until(t, "9. ")
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if code := d.end(t); code != -1 {
		t.Errorf("exit code %d, want a signal", code)
	}
	eventually(t, "all processes of the demo end", func() (bool, string) {
		left := d.processes(t)
		return left == "", left
	})
}
