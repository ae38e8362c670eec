// Package tokens sets up real PKCS#11 tokens other than plain SoftHSM, for tests: opencryptoki's soft token, NSS
// softokn, p11-kit's remoting in front of SoftHSM, and a TPM 2.0 (tpm2-pkcs11 on swtpm). Each is private: its state
// is in the test's folder or in mount and IPC namespaces of its own, its servers listen on Unix sockets or on
// loopback, and every process ends with the test. What is done with a token is the caller's work.
//
// Most of these modules read the environment at C_Initialize, keep state that C_Finalize leaves behind, or can end
// the process they live in. A test therefore runs each in a process of its own: Apart.
//
// A token that is not installed skips the test and says so. With HSM_KMS_REQUIRE_TOKENS=1 it fails it instead.
package tokens

import (
	"context"
	"crypto/rand"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Token is a token that is ready to be used by this process: what the module wants in the environment is set.
type Token struct {
	Name     string // vendor and version, for people
	Module   string // path of the PKCS#11 module
	Reserved string // pReserved of C_Initialize; "" for none
	Label    string // of the token
	PINFile  string // mode 0600
	Profile  string // the profile that the token can do, as in the configuration
	// MakeKey makes a key of ring ring with CKA_ID ckaID (printable ASCII) by the vendor's own tool, in a process
	// of its own. nil: the token can generate keys through PKCS#11.
	MakeKey func(ctx context.Context, ring string, ckaID []byte) error
}

// Require makes a missing token a failure instead of a skipped test.
const Require = "HSM_KMS_REQUIRE_TOKENS"

// need skips or fails the test when a program or file of a token is not installed. Names with a slash are files.
func need(t *testing.T, token string, names ...string) {
	t.Helper()
	var missing []string
	for _, name := range names {
		_, err := exec.LookPath(name)
		if strings.Contains(name, "/") {
			_, err = os.Stat(name)
		}
		if err != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		unable(t, token, "not installed: "+strings.Join(missing, ", ")+" (test/tools/need.sh tokens installs it on Debian)")
	}
}

// unable ends a test whose token cannot be had here.
func unable(t *testing.T, token, why string) {
	t.Helper()
	if os.Getenv(Require) == "1" {
		t.Fatalf("%s=1, and %s cannot be had: %s", Require, token, why)
	}
	t.Skipf("NOT TESTED: %s cannot be had: %s", token, why)
}

// module finds a PKCS#11 module below the places where distributions put libraries.
func module(t *testing.T, token string, names ...string) string {
	t.Helper()
	for _, place := range []string{"/usr/lib/*-linux-gnu/", "/usr/lib64/", "/usr/lib/"} {
		for _, name := range names {
			if found, _ := filepath.Glob(place + name); len(found) > 0 {
				return found[0]
			}
		}
	}
	unable(t, token, fmt.Sprintf("no %s below /usr/lib (test/tools/need.sh tokens installs it on Debian)", names[0]))
	return ""
}

// writePIN writes a PIN file in the test's folder.
func writePIN(t *testing.T, pin string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(path, []byte(pin+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// digits is a random PIN of 8 digits, which is all that opencryptoki allows.
func digits(t *testing.T) string {
	t.Helper()
	n, err := rand.Int(rand.Reader, big.NewInt(90_000_000))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(n.Int64() + 10_000_000)
}

// tool runs a vendor's tool and fails with what it said.
func tool(ctx context.Context, env []string, stdin, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("running %s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// must is tool in a test.
func must(t *testing.T, stdin, name string, args ...string) {
	t.Helper()
	if err := tool(t.Context(), nil, stdin, name, args...); err != nil {
		t.Fatal(err)
	}
}

// setenv sets a variable for the rest of the process: the module may read it until it is unloaded, which it never is.
func setenv(t *testing.T, name, value string) {
	t.Helper()
	if os.Getenv(apartMark) == "" {
		t.Fatal("a token that needs the environment wants a process of its own: tokens.Apart")
	}
	if err := os.Setenv(name, value); err != nil {
		t.Fatal(err)
	}
}
