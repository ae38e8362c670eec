package tokens

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// flushed runs a TPM tool and then flushes what it left in the TPM: swtpm has no resource manager, and its three
// places for objects would be full after one step of tpm2_ptool.
const flushed = `#!/bin/sh
tool=/usr/bin/$(basename "$0")
"$tool" "$@"
result=$?
/usr/bin/tpm2_flushcontext -t >/dev/null 2>&1
exit $result
`

// TPM sets up a TPM 2.0 in software with a tpm2-pkcs11 store. Keys come from tpm2_ptool: C_GenerateKey is not
// supported. Only in a process that Apart made.
func TPM(t *testing.T) *Token {
	t.Helper()
	return tpm(t, "TPM 2.0 (tpm2-pkcs11 on swtpm)", func(_, swtpm string) string { return swtpm })
}

// TPMWithManager is TPM behind a resource manager, so that several processes can use it at once, as with /dev/tpmrm0.
func TPMWithManager(t *testing.T) *Token {
	t.Helper()
	const name = "TPM 2.0 (tpm2-pkcs11 on swtpm behind tpm2-abrmd)"
	need(t, name, "dbus-daemon", "/usr/sbin/tpm2-abrmd")
	return tpm(t, name, func(folder, swtpm string) string { return startManager(t, folder, swtpm) })
}

// tpm sets up the token; access makes of the TCTI of swtpm the one that is used.
func tpm(t *testing.T, name string, access func(folder, swtpm string) string) *Token {
	t.Helper()
	need(t, name, "swtpm", "tpm2_ptool", "/usr/bin/tpm2_flushcontext")
	so := module(t, name, "pkcs11/libtpm2_pkcs11.so", "libtpm2_pkcs11.so.1", "pkcs11/libtpm2_pkcs11.so.0")
	folder := t.TempDir()
	tools := filepath.Join(folder, "tools")
	for _, made := range []string{tools, filepath.Join(folder, "state"), filepath.Join(folder, "store")} {
		if err := os.Mkdir(made, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	port := startTPM(t, folder)
	tcti := access(folder, fmt.Sprintf("swtpm:host=127.0.0.1,port=%d", port))
	setenv(t, "TPM2_PKCS11_TCTI", tcti)
	setenv(t, "TPM2TOOLS_TCTI", tcti)
	setenv(t, "TPM2_PKCS11_STORE", filepath.Join(folder, "store"))
	setenv(t, "TPM2_PKCS11_LOG_LEVEL", "0")
	wrapTools(t, tools)
	setenv(t, "PATH", tools+string(os.PathListSeparator)+os.Getenv("PATH"))

	pin := digits(t)
	must(t, "", "tpm2_ptool", "init")
	must(t, "", "tpm2_ptool", "addtoken", "--pid=1", "--label=k8s", "--userpin="+pin, "--sopin="+digits(t))
	return &Token{
		Name: name, Module: so, Label: "k8s", PINFile: writePIN(t, pin), Profile: "hmac-kdf",
		MakeKey: func(ctx context.Context, ring string, ckaID []byte) error {
			return tool(ctx, nil, "", "tpm2_ptool", "addkey", "--algorithm=hmac:sha256", "--label=k8s",
				"--userpin="+pin, "--key-label="+ring, "--id="+string(ckaID))
		},
	}
}

// wrapTools puts, under the name of each TPM tool, a script that flushes after it.
func wrapTools(t *testing.T, folder string) {
	t.Helper()
	installed, err := filepath.Glob("/usr/bin/tpm2_*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range installed {
		if filepath.Base(path) == "tpm2_ptool" {
			continue
		}
		if err := os.WriteFile(filepath.Join(folder, filepath.Base(path)), []byte(flushed), 0o700); err != nil { //nolint:gosec // a script
			t.Fatal(err)
		}
	}
}

// startTPM starts swtpm on two ports in succession, as its clients expect them, and returns the first.
func startTPM(t *testing.T, folder string) int {
	t.Helper()
	for range 20 {
		port, err := freePair()
		if err != nil {
			continue
		}
		server, err := proc.Start(proc.Spec{
			Name: "swtpm", Path: "swtpm", Log: filepath.Join(folder, "swtpm.log"),
			Args: []string{
				"socket", "--tpm2", "--tpmstate", "dir=" + filepath.Join(folder, "state"),
				"--server", fmt.Sprintf("type=tcp,port=%d,bindaddr=127.0.0.1", port),
				"--ctrl", fmt.Sprintf("type=tcp,port=%d,bindaddr=127.0.0.1", port+1),
				"--flags", "not-need-init,startup-clear",
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(server.Kill)
		if answers(t, server, port+1) {
			return port
		}
	}
	t.Fatal("swtpm did not start on any pair of ports")
	return 0
}

// startManager starts tpm2-abrmd on a D-Bus of its own, and returns the TCTI that leads to it.
func startManager(t *testing.T, folder, swtpm string) string {
	t.Helper()
	bus := filepath.Join(folder, "bus")
	start := func(spec proc.Spec) {
		spec.Log = filepath.Join(folder, spec.Name+".log")
		server, err := proc.Start(spec)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(server.Kill)
	}
	start(proc.Spec{Name: "dbus", Path: "dbus-daemon", Args: []string{"--session", "--nofork", "--address=unix:path=" + bus}})
	waitFor(t, "dbus", func() error {
		conn, err := net.Dial("unix", bus)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	setenv(t, "DBUS_SESSION_BUS_ADDRESS", "unix:path="+bus)
	start(proc.Spec{Name: "tpm2-abrmd", Path: "/usr/sbin/tpm2-abrmd", Args: []string{"--session", "--allow-root", "--tcti=" + swtpm}})
	const tcti = "tabrmd:bus_type=session"
	waitFor(t, "tpm2-abrmd", func() error {
		return exec.CommandContext(t.Context(), "/usr/bin/tpm2_getcap", "--tcti="+tcti, "properties-fixed").Run() //nolint:gosec // of this test
	})
	return tcti
}

// answers waits until swtpm listens, or has ended because somebody took its port.
func answers(t *testing.T, server *proc.Process, port int) bool {
	t.Helper()
	ended := false
	waitFor(t, "swtpm", func() error {
		if ended = !server.Running(); ended {
			return nil
		}
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return err
		}
		return conn.Close()
	})
	return !ended
}

// freePair finds two free ports in succession.
func freePair() (int, error) {
	first, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer first.Close()
	port := first.Addr().(*net.TCPAddr).Port
	second, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+1))
	if err != nil {
		return 0, err
	}
	return port, second.Close()
}
