package tokens

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// Remote is p11-kit's server in front of a SoftHSM token: a module that is reached over a socket, and can be killed
// or stopped as a network HSM can. It hides AES-GCM and carries HMAC.
type Remote struct {
	*Token
	SoftHSM *softhsm.Token // the token behind it
	t       *testing.T
	socket  string
	server  *proc.Process
}

// P11Kit sets up p11-kit's remoting. Only in a process that Apart made.
func P11Kit(t *testing.T) *Remote {
	t.Helper()
	const name = "p11-kit remote"
	need(t, name, "p11-kit")
	so := module(t, name, "pkcs11/p11-kit-client.so")
	behind := softhsm.ForTest(t, "k8s")
	folder, err := os.MkdirTemp("", "p11") // a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	r := &Remote{
		Token:   &Token{Name: name, Module: so, Label: behind.Label, PINFile: behind.PINFile, Profile: "hmac-kdf"},
		SoftHSM: behind, t: t, socket: filepath.Join(folder, "s"),
	}
	setenv(t, "P11_KIT_SERVER_ADDRESS", "unix:path="+r.socket)
	r.Start()
	t.Cleanup(r.Kill)
	return r
}

// Start starts the server, which must not run.
func (r *Remote) Start() {
	r.t.Helper()
	_ = os.Remove(r.socket) // left by one that was killed
	server, err := proc.Start(proc.Spec{
		Name: "p11-kit server", Path: "p11-kit",
		Args: []string{"server", "--foreground", "--provider", r.SoftHSM.Module, "--name", r.socket, "pkcs11:token=" + r.Label},
		Env:  r.SoftHSM.Env(), Log: filepath.Join(filepath.Dir(r.socket), "log"),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.server = server
	waitFor(r.t, "p11-kit server", func() error {
		_, err := os.Stat(r.socket)
		return err
	})
}

// Kill ends the server and the processes that it has for its connections.
func (r *Remote) Kill() { r.server.Kill() }

// Stop stops the server and its connections as SIGSTOP does: calls then block without end. Continue undoes it.
func (r *Remote) Stop() { r.signal(syscall.SIGSTOP) }

// Continue undoes Stop.
func (r *Remote) Continue() { r.signal(syscall.SIGCONT) }

func (r *Remote) signal(sig syscall.Signal) {
	r.t.Helper()
	if err := syscall.Kill(-r.server.PID(), sig); err != nil {
		r.t.Fatal(err)
	}
}
