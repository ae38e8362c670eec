package tokens

import (
	"context"
	"fmt"
	"net"
	"os"
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
	const name = "TPM 2.0 (tpm2-pkcs11 on swtpm)"
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
	tcti := fmt.Sprintf("swtpm:host=127.0.0.1,port=%d", port)
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
