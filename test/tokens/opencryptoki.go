package tokens

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"testing"
	"time"
)

// The PIN and slot that opencryptoki's soft token has from its maker.
const (
	ockFactorySOPIN = "87654321"
	ockSlot         = "3"
)

// Opencryptoki sets up opencryptoki's soft token with its daemon. All its folders are fixed, so they are covered by
// private ones first; the machine's own store is never seen. Only in a process that Apart made, as root.
func Opencryptoki(t *testing.T) *Token {
	t.Helper()
	const name = "opencryptoki soft token"
	need(t, name, "pkcsslotd", "pkcsconf")
	so := module(t, name, "opencryptoki/libopencryptoki.so", "pkcs11/libopencryptoki.so", "libopencryptoki.so")
	group, err := user.LookupGroup("pkcs11")
	if err != nil {
		unable(t, name, "no group pkcs11")
	}
	gid, err := strconv.Atoi(group.Gid)
	if err != nil {
		t.Fatal(err)
	}
	cover(t, name, "/var/lib/opencryptoki", "/etc/opencryptoki", "/var/log", "/run", "/dev/shm")
	conf := fmt.Sprintf("version opencryptoki-3.1\nslot %s\n{\nstdll = libpkcs11_sw.so\n}\n", ockSlot)
	if err := os.WriteFile("/etc/opencryptoki/opencryptoki.conf", []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{
		"/var/lib/opencryptoki", "/var/lib/opencryptoki/swtok", "/var/lib/opencryptoki/swtok/TOK_OBJ",
		"/var/log/opencryptoki", "/run/opencryptoki", "/run/lock", "/run/lock/opencryptoki", "/run/lock/opencryptoki/swtok",
	} {
		if err := groupFolder(folder, gid); err != nil {
			t.Fatal(err)
		}
	}
	must(t, "", "pkcsslotd") // goes to the background; it ends with the PID namespace
	waitFor(t, "pkcsslotd", func() error { return tool(t.Context(), nil, "", "pkcsconf", "-t", "-c", ockSlot) })

	pin, soPIN := digits(t), digits(t)
	must(t, "k8s\n", "pkcsconf", "-I", "-c", ockSlot, "-S", ockFactorySOPIN)
	must(t, "", "pkcsconf", "-P", "-c", ockSlot, "-S", ockFactorySOPIN, "-n", soPIN)
	must(t, "", "pkcsconf", "-u", "-c", ockSlot, "-S", soPIN, "-n", pin)
	return &Token{Name: name, Module: so, Label: "k8s", PINFile: writePIN(t, pin), Profile: "hmac-kdf"}
}

func groupFolder(path string, gid int) error {
	if err := os.MkdirAll(path, 0o770); err != nil {
		return fmt.Errorf("making a folder for opencryptoki: %w", err)
	}
	if err := os.Chown(path, 0, gid); err != nil {
		return fmt.Errorf("making a folder for opencryptoki: %w", err)
	}
	if err := os.Chmod(path, 0o770); err != nil { //nolint:gosec // what opencryptoki wants
		return fmt.Errorf("making a folder for opencryptoki: %w", err)
	}
	return nil
}

// waitFor polls ready, for which there is no event, until it succeeds.
func waitFor(t *testing.T, what string, ready func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := ready()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not ready after 20 s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
